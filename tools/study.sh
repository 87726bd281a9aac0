#!/usr/bin/env bash
# The desk study (claims/desk-study.md): its queue of runs, one thread at the lowest priority, for as long as the machine is on.
#
#   tools/study.sh run WORK TINY100 [CIFAR]   begins, or goes on where it was stopped; ends when the queue does
#   tools/study.sh pause WORK                 holds it (kill -STOP), while something else is timed
#   tools/study.sh go WORK                    lets it go on
#   tools/study.sh stop WORK                  ends it after the step at hand, with a checkpoint
#   tools/study.sh status WORK                whether it runs, which claims are under way, how many runs there are
#   tools/study.sh collect WORK               takes new records into claims/records, and writes README's table and docs/claims.md
#
# TINY100 is a folder with train/<class>/* and val/<class>/*, CIFAR one with CIFAR-10's binary files. In WORK lie a clone of the commit
# that claims/desk-study.commit names, with an environment of its own, the prepared sets, the runs and the records. What this repository
# has records of is not run again: another machine needs a clone of it, with its history, and the data alone. LANES=2 before `run` keeps
# two cores busy: each lane takes the next claim that no other has taken, and that none waits for whose runs it shares. The study left out
# `cifar-local`, `crops`, `flips` and `schedule` for want of time: EXTRAS=1 before `run` has them made last.
set -euo pipefail

usage() { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
action=$1
repository=$(cd "$(dirname "$0")/.." && pwd)
refuse() { echo "study: $*" >&2; exit 2; }
if [ "$action" = run ]; then  # what is wrong is told before anything is made
    [ $# -ge 3 ] || usage
    for part in train val; do [ -d "$3/$part" ] || [ -e "$2/tiny100-raw/index.json" ] || refuse "$3: Tiny ImageNet's pictures are not there, it has no folder $part"; done
    [ -z "${4:-}" ] || [ -d "$4" ] || refuse "$4: no such directory, so no CIFAR-10"
    [[ ${LANES:=1} =~ ^[1-9][0-9]?$ ]] || refuse "LANES=$LANES: how many claims at once, as in LANES=2"
    mkdir -p "$2"
fi
work=$(cd "$2" 2> /dev/null && pwd) || refuse "$2: no such directory"
clone=$work/clone records=$work/records

runs() { [ -e "$work/lock" ] && ! flock --nonblock "$work/lock" true; }

signal() {  # to the queue and all that it started
    runs || { echo "study: no queue runs in $work" >&2; exit 1; }
    kill "-$1" -- "-$(cat "$work/group")"
}

claim() {  # claim ID OPTIONS...: one thread, the lowest priority; a claim that fails doesn't end the queue
    local status=0 first=specialisation  # the claim that it waits for, since it shares its runs; base's are shared by nearly all
    [ ! -e stopped ] || exit 0
    case $1 in specialisation) first="" ;; pretraining) first=sixth-conv ;; ensemble7) first=pretraining ;; esac
    if [ -n "$first" ] && [ -z "$(ls "taken/$first" 2> /dev/null)" ]; then waits=yes; return 0; fi
    mkdir "taken/$1" 2> /dev/null || return 0  # by another lane, or done
    if [[ "$strange " == *" $3 "* ]]; then touch "taken/$1/left"; return 0; fi
    nice -n 19 "$clone/.venv/bin/python" -m alexnet_mp.claims run "$@" --gpus cpu --out runs --records records || status=$?
    if [ -e stopped ]; then exit 0; fi
    if [ "$status" -eq 0 ]; then touch "taken/$1/done"; else touch "taken/$1/failed"; fi
}

lane() {  # all claims, in the order of claims/desk-study.md; again, as long as one waits for another lane's
    local id seeds waits=yes note="re-encoded as JPEG of quality 75"
    trap : TERM INT HUP  # the command at hand ends by itself, with a checkpoint
    while [ -n "$waits" ]; do
        waits=""
        for id in specialisation ensemble5 views lrn one-gpu dropout crops-flips colour augmentation pooling depth links weight-decay init \
            biases order sixth-conv pretraining ensemble7 curve; do
            case $id in ensemble*) seeds=1 ;; *) seeds=6 ;; esac
            claim $id --data tiny100-raw --base desk --seeds $seeds
        done
        if [ -n "$cifar" ]; then
            claim cifar-lrn --data cifar10-raw --seeds 3 --epochs 33 --note "$note"
            claim cifar-relu --data cifar10-raw --seeds 3 --note "$note"
            if [ -n "${EXTRAS:-}" ]; then claim cifar-local --data cifar10-raw --seeds 3 --epochs 52 --note "$note"; fi
        fi
        if [ -n "${EXTRAS:-}" ]; then
            for id in crops flips schedule; do claim $id --data tiny100-raw --base desk --seeds 6; done
        fi
        if [ -n "$waits" ]; then sleep 1 || true; fi
    done
}

install() {
    local commit
    commit=$(cat "$repository/claims/desk-study.commit")
    git -C "$repository" cat-file -e "$commit^{commit}" 2> /dev/null ||
        refuse "$repository lacks commit $commit, which the study runs: it takes a clone with all of its history"
    [ -d "$clone/.git" ] || git clone --quiet --no-checkout "$repository" "$clone"
    if [ "$(git -C "$clone" rev-parse HEAD)" != "$commit" ] || [ ! -e "$clone/.venv/installed" ]; then
        git -C "$clone" fetch --quiet "$repository"
        git -C "$clone" checkout --quiet --detach "$commit"
        make --directory "$clone" --silent install
    fi
}

prepare() {  # prepare SOURCE SET SIZE
    [ -e "$2/index.json" ] || nice -n 19 "$clone/.venv/bin/python" -m alexnet_mp.prepare "$1" "$2" --raw --size "$3" --workers 1
}

known() {  # known SET: whether it is that of the records: else none of their runs would be found, and all be trained again
    local answer fingerprint of_set read='import sys; from alexnet_mp.prepared_format import read_index; print(read_index(sys.argv[1]).fingerprint())'
    mapfile -t of_set < <(grep -ls -- "--data $1 " "$records"/*.json)
    [ ${#of_set[@]} -gt 0 ] && [ -z "${ANEW:-}" ] || return 0
    answer=$("$clone/.venv/bin/python" -c "$read" "$1" 2>&1) || refuse "$work/$1 can't be read, remove it and start again: ${answer##*$'\n'}"
    fingerprint=${answer##*$'\n'}
    grep -qF "\"$fingerprint\"" "${of_set[@]}" && return
    strange+=" $1"
    echo "study: $work/$1 isn't the set of the records (fingerprint $fingerprint), so all of its runs would be made anew." \
        "Its pictures are others, or its components of colour were found without AVX-512 instructions: remove it and" \
        "start again where the processor has them, or say ANEW=1 to make the study on it" >&2
}

case $action in
run)
    if [ "$(ps -o pgid= -p $$ | tr -d ' ')" != $$ ]; then  # a group of its own, for the signals
        echo "study: Ctrl-C leaves the queue running; $0 stop '$2' ends it"
        exec setsid --wait "$0" "$@"
    fi
    exec 9> "$work/lock"
    flock --nonblock 9 || { echo "study: the queue runs already in $work" >&2; exit 1; }
    # Linux weighs sessions against each other (autogroup), and nice values only within one: this session gets the lowest weight.
    { echo 19 > /proc/self/autogroup; } 2> /dev/null || true
    tiny100=$(realpath -m "$3") cifar=${4:+$(realpath -m "$4")}
    echo $$ > "$work/group"
    export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
    # A set's fingerprint holds what LAPACK found on a processor, at the study's commit: every machine that has these instructions takes them.
    if grep -qs avx512f /proc/cpuinfo; then export OPENBLAS_CORETYPE=SkylakeX; fi
    rm -f "$work/stopped"
    trap 'touch "$work/stopped"' TERM INT HUP
    mkdir -p "$records/runs"
    cp --no-clobber "$repository"/claims/records/*.json "$records/" 2>/dev/null || true
    cp --no-clobber "$repository"/claims/records/runs/* "$records/runs/" 2>/dev/null || true
    install
    cd "$work"  # relative paths from here on: records say them, and another machine has others
    sets="tiny100-raw${cifar:+ cifar10-raw}" strange=""  # strange: those that aren't the records', each after a space
    prepare "$tiny100" tiny100-raw 64
    if [ -n "$cifar" ]; then prepare "$cifar" cifar10-raw 32; fi
    for one in $sets; do known "$one"; done
    [ "$strange" != " $sets" ] || exit 2
    rm -rf taken
    mkdir taken
    for ((number = LANES; number > 0; number--)); do lane & done
    until wait; do :; done  # a signal interrupts it
    if [ -e stopped ]; then exit; fi
    failed=$(find taken -name failed -printf ' %P' | sed 's,/failed,,g') left=$(find taken -name left -printf ' %P' | sed 's,/left,,g')
    echo "study: the queue has come to its end${failed:+; failed, so to be called again:$failed}${left:+; left out, since$strange isn't the records':$left}"
    [ -z "$failed$left" ]
    exit
    ;;
pause) signal STOP ;;
go) signal CONT ;;
stop) if runs; then touch "$work/stopped"; fi; signal CONT; signal TERM ;;
status)
    if runs; then
        under_way=$(find "$work/taken" -mindepth 1 -maxdepth 1 -empty -printf ' %f' 2> /dev/null) || true
        echo "study: the queue runs in $work${under_way:+; under way:$under_way}"
    else
        echo "study: no queue runs in $work"
    fi
    echo "$(find "$records/runs" -name '*.json' 2>/dev/null | wc -l) runs are kept, $(find "$work/runs" -maxdepth 2 -name run.json 2>/dev/null | wc -l) lie here"
    ;;
collect)
    [ -x "$repository/.venv/bin/python" ] || refuse "make install first: $repository has no .venv"
    cd "$repository" && .venv/bin/python -m alexnet_mp.claims table --write --take "$records"
    ;;
*) usage ;;
esac
