#!/usr/bin/env bash
# From a fresh clone to figures:   ./reproduce.sh          the paper's 300 epochs (hours on a CPU)
#                                  ./reproduce.sh quick    9 epochs on the same 49,000 sequences (minutes)
#                                  ./reproduce.sh test     install what the tests need and run them
# Makes .venv, installs requirements.txt, trains in runs/, writes figures/ (or figures/quick/) and the
# report in it. Finished steps are skipped, an interrupted training goes on from its last epoch: just
# call it again. The full run's weights take the place of those in figures/: hjepa.pt, far.pt, refined.pt.
# PYTHON=python3.12 ./reproduce.sh   uses another interpreter (3.11 to 3.13).
set -euo pipefail
cd "$(dirname "$0")"
mode=${1:-paper}
case "$mode" in
    paper|quick|smoke|test) ;;
    *) echo "reproduce.sh: unknown argument $mode: use quick, test, or none for the full run" >&2; exit 2 ;;
esac

say() { printf '== %s\n' "$*"; }

install() {                                     # $1: a requirements file, then flags of pip; skipped
    local stamp file=$1                         # while the file is unchanged
    shift
    stamp=".venv/installed-$(echo "$file" | tr / -)"
    cmp -s "$file" "$stamp" && return
    say "installing $file"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@" -r "$file" &&
        cp "$file" "$stamp"
}

if [ ! -x .venv/bin/python ]; then
    say "making .venv"
    "${PYTHON:-python3}" -m venv .venv || { echo "reproduce.sh: no virtual environment could be made:" \
        "install Python 3.11 to 3.13 with its venv module, or name one with PYTHON=..." >&2; exit 2; }
fi
install requirements.txt
py=.venv/bin/python

if [ "$mode" = test ]; then
    install tests/requirements.txt
    say "running the tests"
    exec $py -m pytest tests -q -n 2          # two processes, of one thread each
fi

run=runs/$mode
out=figures/$mode                               # the small presets do not touch the paper's figures
say "training preset $mode in $run"
$py hjepa.py train --preset "$mode" --run "$run"
if [ "$mode" = paper ]; then
    out=figures
    if [ "$run/last.pt" -nt figures/hjepa.pt ]; then
        say "packing the weights"
        $py figures/ship.py --run "$run"
    fi
    run=figures/hjepa.pt                        # figures of what is shipped: anyone can make them again
fi

figure() {                                      # $1: name, rest: command; skipped if made from this very run
    local json=$out/$1.json name=$1 weights=$run
    shift
    [ -d "$run" ] && weights=$run/last.pt
    if [ "$json" -nt "$weights" ] && grep -q -e "--run $run\"" -e "--run $run " "$json"; then
        say "$json is up to date"
    else
        say "$name: $*"
        "$@" --out "$out"
    fi
}
for name in curves diagnose probe plan; do
    figure $name $py hjepa.py $name --run "$run"
done
for name in representation dynamics surprise; do
    figure $name $py figures/$name.py --run "$run"
done
frames=25                                       # the long horizons take an hour: for the full run only
[ "$mode" = paper ] && frames="25 50 75"
figure planning $py figures/planning.py --run "$run" --precision auto --frames $frames
figure episode $py figures/episode.py --run "$run" --precision auto
figure diagram $py figures/diagram.py --run "$run"
if [ "$mode" = paper ]; then
    figure search $py figures/search.py --run "$run"
    [ -f runs/far/last.pt ] || rm -f "$out/extend.json"
    figure extend $py figures/extend.py --run "$run" --to runs/far
    if [ runs/far/last.pt -nt figures/far.pt ]; then
        say "packing the weights of the macro level trained on"
        $py figures/ship.py --run runs/far --to figures/far.pt
    fi
    [ -f runs/refined/last.pt ] || rm -f "$out/refine.json"
    figure refine $py figures/refine.py --run "$run" --to runs/refined
    if [ runs/refined/last.pt -nt figures/refined.pt ]; then
        say "packing the weights trained on with new worlds"
        $py figures/ship.py --run runs/refined --to figures/refined.pt
    fi
    for when in before after; do
        run=figures/hjepa.pt
        [ $when = after ] && run=figures/refined.pt
        out=figures/refined/$when figure planning $py figures/planning.py --run "$run" --frames 25 \
            --only "macro open loop" "short open loop" "short replanned"
        out=figures/refined/$when-500 figure planning $py figures/planning.py --run "$run" --frames 25 \
            --only "macro open loop" --samples 500
    done
    out=figures/refined/after figure surprise $py figures/surprise.py --run "$run"
    run=figures/far.pt
    figure hierarchy $py figures/hierarchy.py --run "$run"
    say "training preset quick, which the ablations retrain nine times"
    $py hjepa.py train --preset quick --run runs/quick
    run=runs/quick
    for seed in 1 2; do
        say "training preset quick with seed $seed"
        $py hjepa.py train --preset quick --seed $seed --run runs/quick-$seed
    done
    out=figures/seeds figure planning $py figures/planning.py --run "$run" --run "$run-1" --run "$run-2" \
        --frames 25 --only oracle "macro open loop" "short open loop" "short replanned"
    figure ablation $py figures/ablation.py --run "$run" --precision auto
    install figures/requirements-speed.txt --no-deps || say "speed.py will skip what is not installed"
    figure speed $py figures/speed.py --run "$run" --precision auto
fi
install figures/requirements-report.txt
say "report"
$py figures/report.py --figures "$out"
say "done: $out, with $out/report.html and $out/report.md"
