# Each number of this record, one card. usage: bash run.sh FOR_RESULTS FOLDER_WITH_SPIKINGJELLY
out=$1; site=$2; mkdir -p "$out"; cd "$(dirname "$0")/../.." || exit
bench() {
  name=$1; shift
  python3 -m saccade bench "$@" --paths fast --n 20 --device cuda --precision bfloat16 --graph --out "$out/$name.json"
}
imagenet="spikformer_8_512 --batch 64"; cifar="spikformer_4_384 --batch 256"
bench infer8 infer $imagenet --products int8
bench train train $imagenet
bench infer16 infer $imagenet --products bfloat16
bench c_train train $cifar
bench c_infer8 infer $cifar --products int8
bench c_infer16 infer $cifar --products bfloat16
PYTHONPATH=$PYTHONPATH:$site python3 -W ignore benchmarks/gpu_checks.py "$out/checks.json"
python3 -W ignore benchmarks/gpu_training.py "$out/training.json"
