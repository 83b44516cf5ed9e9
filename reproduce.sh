#!/usr/bin/env bash
# From a fresh clone to figures and report.
#
#   ./reproduce.sh quick    9 epochs, minutes of training; figures and report in runs/quick/figures
#   ./reproduce.sh          the paper's 300 epochs, hours on a CPU; figures in figures/results
#   ./reproduce.sh smoke    every step with a model that learns little, in a few minutes
#   ./reproduce.sh test     install what the tests need and run them
#
# It makes .venv, installs requirements.txt, trains in runs/ and measures. Steps that are finished are
# skipped and an interrupted training goes on from its last epoch: just call it again.
# PYTHON=python3.12 ./reproduce.sh quick   uses another interpreter (3.11 to 3.13).
set -euo pipefail
cd "$(dirname "$0")"

mode=${1:-paper}
case "$mode" in
    paper|quick|smoke|test) ;;
    *) echo "reproduce.sh: unknown argument $mode: use quick, smoke, test, or none for the full run" >&2
       exit 2 ;;
esac

say() {
    printf '== %s\n' "$*"
}

# install FILE [FLAGS OF PIP]: skipped while the requirements file is the one installed before.
install() {
    local file=$1
    local stamp=".venv/installed-${file//\//-}"
    shift
    if cmp -s "$file" "$stamp"; then
        return
    fi
    say "installing $file"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@" -r "$file" &&
        cp "$file" "$stamp"
}

# An environment of another Python, or one without pip, is made anew.
venv_works() {
    .venv/bin/python -c 'import pip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
        2> /dev/null
}

if ! venv_works; then
    say "making .venv"
    rm -rf .venv
    "${PYTHON:-python3}" -m venv .venv || true
    if ! venv_works; then
        rm -rf .venv
        echo "reproduce.sh: no virtual environment could be made: install Python 3.11 to 3.13 with" \
            "its venv module, or name one with PYTHON=..." >&2
        exit 2
    fi
fi
install requirements.txt
py=.venv/bin/python

if [ "$mode" = test ]; then
    install tests/requirements.txt
    say "running the tests"
    exec $py -m pytest tests -q -n 2      # two processes, of one thread each
fi

# measure WEIGHTS OUT COMMAND...: skipped if it was done before, with these weights.
measure() {
    local weights=$1 out=$2
    shift 2
    local command="$* --out $out"
    local stamp="runs/stamps/$(echo "$command" | cksum | cut -d ' ' -f 1)"
    if [ "$stamp" -nt "$weights" ]; then
        say "done before: $command"
        return
    fi
    say "$command"
    $py "$@" --out "$out"
    mkdir -p runs/stamps
    touch "$stamp"
}

# pack RUN FILE: a finished training as a small file, if it is newer than the file.
pack() {
    if [ "$1/last.pt" -nt "$2" ]; then
        say "packing $1 as $2"
        $py figures/pack.py --run "$1" --to "$2"
    fi
}

say "training preset $mode in runs/$mode"
$py hjepa.py train --preset "$mode" --run "runs/$mode"

run=runs/$mode
weights=$run/last.pt
out=$run/figures
frames=25
if [ "$mode" = paper ]; then
    # The evidence is made from the packed weights, so that anyone can make it again.
    pack runs/paper figures/weights/hjepa.pt
    run=figures/weights/hjepa.pt
    weights=$run
    out=figures/results
    frames="25 50 75"                     # the long horizons take an hour
fi

n=""                                      # sizes: the defaults, but for smoke
goals=""
if [ "$mode" = smoke ]; then
    n="--n 256"
    goals="--goals 10"
fi

for name in curves plan; do
    measure "$weights" "$out" hjepa.py $name --run "$run"
done
for name in diagnose probe; do
    measure "$weights" "$out" hjepa.py $name --run "$run" $n
done
for name in representation dynamics response surprise; do
    measure "$weights" "$out" figures/$name.py --run "$run" $n
done
latent=""
if [ "$mode" = smoke ]; then
    latent="--sequences 512 --epochs 1"
fi
measure "$weights" "$out" figures/latent.py --run "$run" --trainings "runs/latent-$mode" $n $goals \
    $latent
measure "$weights" "$out" figures/episode.py --run "$run"
measure "$weights" "$out" figures/landscapes.py --run "$run" $goals

rival=""
if [ "$mode" = paper ]; then
    rival="--state figures/weights/state.pt"
    measure "$weights" "$out" figures/state.py --run "$run" --to figures/weights/state.pt
fi
measure "$weights" "$out" figures/planning.py --run "$run" --frames $frames $goals $rival
measure "$weights" "$out" figures/report/diagram.py --run "$run"

if [ "$mode" = paper ]; then
    measure "$weights" "$out" figures/hierarchy.py --run "$run"
    measure "$weights" "$out" figures/cost_maps.py --run "$run"
    measure "$weights" "$out" figures/planners.py --run "$run" --frames 25 50 --plans 60 240 \
        --goals 100 --tune-goals 20

    # Three seeds of the short training, variants and rivals of a small one, and timings.
    for seed in 0 1 2; do
        say "training preset quick with seed $seed"
        $py hjepa.py train --preset quick --seed $seed --run "runs/quick-$seed"
    done
    quick=runs/quick-0/last.pt
    measure "$quick" "$out/quick" hjepa.py curves --run runs/quick-0
    measure "$quick" "$out/seeds" figures/planning.py --run runs/quick-0 --run runs/quick-1 \
        --run runs/quick-2 --frames 25 --only oracle "macro open loop" "macro from guess" \
        "short replanned" "replanned from guess"
    say "training a small model, for variants and rivals"
    $py hjepa.py train --preset quick --precision fp32 --validate-every 0 --sequences 24500 \
        --width 64 --depth 2 --short-width 256 --macro-width 256 --macro-blocks 5 \
        --predictor-blocks 2 --guess-width 384 --run runs/small
    measure runs/small/last.pt "$out" figures/variants.py --run runs/small --trial-epochs 2
    measure runs/small/last.pt "$out" figures/baselines.py --run runs/small --trial-epochs 2 \
        --frames 25 50
    measure runs/small/last.pt "$out/long" figures/baselines.py --run runs/small --epochs 27 \
        --worlds noise --only JEPA reconstruction --trial-epochs 2 --frames 25
    measure runs/small/last.pt "$out" figures/objects.py --run runs/small --epochs 9 --n 2048
    install figures/requirements-pictures.txt --no-deps
    install figures/requirements-gym.txt --no-deps
    measure "$quick" "$out" figures/pictures.py
    measure "$quick" "$out" figures/pendulum.py
    install figures/requirements-speed.txt --no-deps || say "what is not installed will be skipped"
    measure "$quick" "$out" figures/speed_time.py --run runs/quick-0 --precision auto \
        --epochs 3 4 5 6 --n 100
    for name in step growth; do
        measure "$quick" "$out" figures/speed_$name.py --run runs/quick-0 --precision auto
    done
    for name in plan simulator; do
        measure "$quick" "$out" figures/speed_$name.py --run runs/quick-0
    done
fi

install figures/requirements-report.txt
say "writing the report"
if [ "$mode" = paper ]; then
    $py figures/report/build.py --readme
else
    $py figures/report/build.py --results "$out" --out "$out"
    say "done: $out, with report.html and report.md"
fi
