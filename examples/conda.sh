#!/usr/bin/env bash
# Prints the variables that conda, mamba or environment modules set, for clients that cron or systemd
# starts: these do not read your login set-up. Run it once, and again after a change:
#
#   conda.sh conda activate align >~/.config/tael/align.env
#   conda.sh module load samtools/1.19 >~/.config/tael/align.env
#
# Then, in the crontab:
#
#   @reboot tael-client --env-file /home/ann/.config/tael/align.env --who align …
#
# It prints a line of NAME="VALUE" for each variable that the command has set or changed.
set -euo pipefail

(($#)) || {
    printf 'usage: conda.sh COMMAND… >FILE, such as: conda.sh conda activate align\n' >&2
    exit 64
}

# A fresh login shell. Otherwise variables of this shell would look like those of the command.
readonly FRESH=(env -i "HOME=$HOME" "USER=$(id -un)" "TERM=dumb" bash --login -c)

# conda is a shell function, which exists in interactive shells only.
# shellcheck disable=SC2016 # these expand in the shell that runs them
readonly ACTIVATED='
    for conda in "${CONDA_EXE:-conda}" ~/{mini,ana}conda3/bin/conda ~/miniforge3/bin/conda; do
        if hook=$("$conda" shell.bash hook 2>/dev/null); then eval "$hook"; break; fi
    done
    "$@" >&2 && env -0'

before=$(mktemp)
trap 'rm -f "$before"' EXIT
"${FRESH[@]}" 'env -0' >"$before"
declare -A old=()
while IFS='=' read -r -d '' name value; do old[$name]=$value; done <"$before"

"${FRESH[@]}" "$ACTIVATED" bash "$@" | while IFS='=' read -r -d '' name value; do
    case $name in
    # Variables of the shell itself, and functions.
    _ | SHLVL | PWD | OLDPWD | BASH_FUNC_*) continue ;;
    esac
    [[ ${old[$name]-} != "$value" || ! -v old[$name] ]] || continue
    if [[ $value == *$'\n'* ]]; then
        printf 'conda.sh: %s has several lines: left out\n' "$name" >&2
        continue
    fi
    value=${value//\\/\\\\}
    printf '%s="%s"\n' "$name" "${value//\"/\\\"}"
done
