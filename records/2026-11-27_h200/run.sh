# Everything in this record, on one GPU, in one run. usage: bash run.sh FOR_RESULTS [FOLDER_WITH_SPIKINGJELLY] [PART ...]
out=$1; site=$2; shift 2; parts=${*:-speed lif other checks scale}
mkdir -p "$out"; cd "$(dirname "$0")/../.." || exit
run() { name=$1; shift; timeout 200 "$@" > "$out/$name.log" 2>&1; tail -c "${SHOWN:-900}" "$out/$name.log"; }
bench() { name=$1; shift; run "$name" python3 -m saccade bench "$@" --device cuda --precision bfloat16 --out "$out/$name.json"; }
imagenet="spikformer_8_512 --batch 64 --paths fast --n 20"
cifar="spikformer_4_384 --batch 256 --paths fast --n 20"
speed() {  # first steps are taken with empty caches of compiled kernels
  TRITON_CACHE_DIR=$(mktemp -d) bench train_224 train $imagenet --graph
  TRITON_CACHE_DIR=$(mktemp -d) bench train_cifar train $cifar --graph
  bench train_224_eager train $imagenet
  bench infer_224_int8 infer $imagenet --graph --products int8
  bench infer_224_bf16 infer $imagenet --graph --products bfloat16
  bench infer_cifar_int8 infer $cifar --graph --products int8
  bench infer_cifar_bf16 infer $cifar --graph --products bfloat16
}
lif() {
  bench ops_lif ops lif --size large --n 20 --graph
}
other() {
  [ -n "$site" ] || return
  sj="python3 -W ignore benchmarks/spikingjelly/run.py --device cuda --precision bfloat16 --site $site"
  run sj_train_224 $sj --mode train --dim 512 --depth 8 --size 224 --patch 16 --classes 1000 --n 8
  run sj_infer_224 $sj --mode infer --dim 512 --depth 8 --size 224 --patch 16 --classes 1000 --n 8
  run sj_train_cifar $sj --mode train --dim 384 --depth 4 --heads 12 --batch 256 --n 8
  run sj_infer_cifar $sj --mode infer --dim 384 --depth 4 --heads 12 --batch 256 --n 8
  run sj_lif $sj --task lif --elements 25690112 --n 10
}
checks() {
  export PYTHONPATH=$PYTHONPATH:$site
  run where python3 -W ignore benchmarks/where_it_goes.py measure "$out/where.json"
  run checks python3 -W ignore benchmarks/gpu_checks.py "$out/checks.json"
}
scale() {
  small="spikformer_4_384 depth=4 --paths fast --n 7 --graph"
  bench scale_T train $small --batch 32 --scale T=1,2,4,8,16,32
  bench scale_tokens train $small --batch 8 --scale tokens=196,784,1600,3136
  bench scale_batch train $small --scale batch=32,64,128,256,512
  bench scale_depth train $small --batch 64 --scale depth=1,2,4,8
  run attention_memory python3 -W ignore benchmarks/attention_memory.py --out "$out/memory"
}
for part in $parts; do $part; done
