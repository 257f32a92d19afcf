# The numbers of this record, one card. usage: bash run.sh FOR_RESULTS SOURCES_BEFORE
out=$1; before=$2; mkdir -p "$out"; cd "$(dirname "$0")/../.." || exit
here=$PWD; several="python3 -W ignore $here/benchmarks/several.py"
$several new "$here/src" "$out" train infer8 infer16 c_train c_infer8 c_infer16 eager
$several old "$before" "$out" train c_train
for sources in "$before" "$here/src"; do python3 -W ignore "$here/records/2026-11-28_h200_stem/parts.py" "$sources"; done
export PYTHONPATH=$PYTHONPATH:$here/src:$here
python3 -W ignore benchmarks/gpu_checks.py "$out/checks.json" gradients linear picture learning compiled exact_lif flips inference
python3 -W ignore benchmarks/where_it_goes.py measure "$out/where.json"
python3 -W ignore benchmarks/gpu_training.py "$out/training.json"
