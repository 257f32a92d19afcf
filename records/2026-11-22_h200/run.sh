# Everything in this record, on one GPU, in one run. usage: bash run.sh FOR_RESULTS [FOLDER_WITH_SPIKINGJELLY]
set -x
out=$1; site=$2; mkdir -p "$out"; cd "$(dirname "$0")/../.." || exit
run() { name=$1; shift; timeout 100 "$@" > "$out/$name.log" 2>&1; tail -c 700 "$out/$name.log"; }
bench() { name=$1; shift; run "$name" python3 -m saccade bench "$@" --device cuda --precision bfloat16 --out "$out/$name.json"; }
imagenet="spikformer_8_512 --batch 64 --paths fast --n 20"
cifar="spikformer_4_384 --batch 256 --paths fast --n 20"
bench train_224 train $imagenet --graph
bench infer_224_int8 infer $imagenet --graph --products int8
bench infer_224_bf16 infer $imagenet --graph --products bfloat16
bench train_224_eager train $imagenet
bench train_cifar train $cifar --graph
bench infer_cifar_int8 infer $cifar --graph --products int8
bench infer_cifar_bf16 infer $cifar --graph --products bfloat16
export PYTHONPATH=$PYTHONPATH:$site
run checks python3 -W ignore benchmarks/gpu_checks.py "$out/checks.json"
run where python3 -W ignore benchmarks/where_it_goes.py measure "$out/where.json"
bench ops_lif ops lif --size imagenet --n 20 --graph
if [ -n "$site" ]; then
  sj="python3 -W ignore benchmarks/spikingjelly/run.py --device cuda --precision bfloat16 --site $site"
  run sj_train_224 $sj --mode train --dim 512 --depth 8 --size 224 --patch 16 --classes 1000 --n 8
  run sj_infer_224 $sj --mode infer --dim 512 --depth 8 --size 224 --patch 16 --classes 1000 --n 8
  run sj_train_cifar $sj --mode train --dim 384 --depth 4 --heads 12 --batch 256 --n 8
  run sj_infer_cifar $sj --mode infer --dim 384 --depth 4 --heads 12 --batch 256 --n 8
  run sj_lif $sj --task lif --elements 27000000 --n 10
fi
small="spikformer_4_384 depth=4 --paths fast --n 5"
bench scale_T train $small --batch 32 --scale T=1,2,4,8,16
bench scale_tokens infer $small --batch 16 --graph --scale tokens=196,784,1600,3136
bench scale_batch train $small --graph --scale batch=32,64,128,256
bench scale_depth train $small --batch 64 --graph --scale depth=1,2,4,8
