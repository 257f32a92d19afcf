# The numbers of this record, one card. usage: bash run.sh FOR_RESULTS FOLDER_WITH_SPIKINGJELLY SOURCES_BEFORE
out=$1; site=$2; before=$3; mkdir -p "$out"; cd "$(dirname "$0")/../.." || exit
here=$PWD; several="python3 -W ignore $here/benchmarks/several.py"
PYTHONPATH=$PYTHONPATH:$here/src $several new "$here/src" "$out" train infer8 infer16 c_train c_infer8 c_infer16
PYTHONPATH=$PYTHONPATH:$before $several old "$before" "$out" train infer8
export PYTHONPATH=$PYTHONPATH:$here/src:$here:$site
sj() { python3 -W ignore benchmarks/spikingjelly/run.py --device cuda --precision bfloat16 --site "$site" --n 8 "$@"; }
sj --mode train --dim 512 --depth 8 --size 224 --patch 16 --classes 1000
sj --mode infer --dim 512 --depth 8 --size 224 --patch 16 --classes 1000
sj --mode train --dim 384 --depth 4 --heads 12 --batch 256
sj --mode infer --dim 384 --depth 4 --heads 12 --batch 256
python3 -W ignore benchmarks/where_it_goes.py measure "$out/where.json"
python3 -W ignore benchmarks/gpu_training.py "$out/training.json"
python3 -W ignore benchmarks/gpu_checks.py "$out/checks.json"
