# Bash completion of trikvctl, trikvd and the trikv- tools. Options come from --help, so that they are
# those of the program that is there; sessions and profiles from the daemon.

_trikv_words() {
    "$1" --help 2>/dev/null | grep -oE -- '(^|[ ,])--[a-z-]+' | grep -oE -- '--[a-z-]+' | sort -u
}

_trikv_sessions() {
    trikvctl --timeout 1 sessions 2>/dev/null | awk '$1 ~ /^[0-9a-f]+$/ { print $1 }'
}

_trikv_profiles() {
    trikvctl --timeout 1 profiles 2>/dev/null | awk 'NR > 1 { print $1 }'
}

_trikv() {
    local program=$1 word=$2 before=$3 choices=

    COMPREPLY=()
    case $before in
    --profile) choices=$(_trikv_profiles) ;;
    --codec | --codec-k | --codec-v)
        choices='f16 int8 tq4 tq3.5 tq3 tq2.5 tq2'
        [ "$before" = --codec-v ] || choices="$choices tq4-qjl tq3-qjl tq2-qjl"
        ;;
    --policy) choices='none triattention' ;;
    --mode) choices='per_layer_perhead per_head union' ;;
    --log-level) choices='error warn info debug' ;;
    show | drop) choices=$(_trikv_sessions) ;;
    session) choices=show ;;
    snapshot) choices=$(_trikv_sessions) ;;
    snapshots) choices=delete ;;
    --socket | -s | --page | --config | --profiles | --model | --text | --output | --json | \
        --metrics | --stats-page | --handover)
        [ "${program##*/}:$before" = trikvctl:--json ] || {
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return
        }
        ;;
    esac
    if [ -z "$choices" ]; then
        choices=$(_trikv_words "$program")
        [ "${program##*/}" = trikvctl ] && [ "${word#-}" = "$word" ] &&
            choices=$("$program" --help 2>/dev/null | awk '/^  [a-z]/ { print $1 }')
    fi
    mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$word")
}

complete -F _trikv trikvctl
complete -o default -F _trikv trikvd trikv-run trikv-calibrate trikv-eval
