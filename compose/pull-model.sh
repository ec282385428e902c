#!/bin/sh
# Download a model: an Ollama tag into the Ollama server, or a GGUF file into a folder.
#
#   compose/pull-model.sh qwen3:0.6b
#   compose/pull-model.sh hf:MaziyarPanahi/Qwen3-0.6B-GGUF/Qwen3-0.6B.Q4_K_M.gguf [FOLDER]
#   compose/pull-model.sh https://example.org/model.gguf [FOLDER]
#
# Prints the size of the download, checks the free disk space, and resumes a broken download. The exit code is 0 only if
# the model is complete.
#
#   MODELS_DIR     a folder with GGUF files that are used without a network (qwen3-0.6b.gguf for qwen3:0.6b)
#   MODEL_SHA256   the SHA-256 of the GGUF file; default: the one that Hugging Face reports
#   PULL_YES=1     do not ask for confirmation; only a terminal is asked
#   PULL_TRIES=5   the maximum number of attempts
#   PULL_INSECURE=1  use an Ollama registry without TLS
#   OLLAMA_HOST    the Ollama server, as for its command line
set -eu

log() { printf '%s\n' "$*" >&2; }
fail() { log "pull-model: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

model=${1:-}
case $model in '' | -*) sed -n '2,18s/^# \{0,1\}//p' "$0" >&2; exit 2 ;; esac
folder=${2:-${MODELS_DIR:-./models}}
max_attempts=${PULL_TRIES:-5}

megabytes() { echo $((($1 + 1048575) / 1048576)); }

# free_megabytes FOLDER: print the free space of the disk of a folder, which may not exist yet
free_megabytes() {
    parent=$1
    while [ ! -d "$parent" ]; do parent=$(dirname "$parent"); done
    df -Pk "$parent" | awk 'NR == 2 { for (at = NF; at > 1; at--) if ($at ~ /^[0-9]+%$/ && $(at - 1) ~ /^[0-9]+$/) { print int($(at - 1) / 1024); exit } }'
}

# check_space NAME MEGABYTES FOLDER: print the size, check the free space, and ask for confirmation on a terminal
check_space() {
    free=$(free_megabytes "$3")
    if [ -z "$free" ]; then
        log "$1: ${2:-an unknown number of} MB to download; the free space in $3 is unknown."
    elif [ -n "$2" ]; then
        log "$1: $2 MB to download; $free MB are free in $3."
        [ "$free" -gt $(($2 + $2 / 20 + 50)) ] || fail "not enough disk space in $3: more than $2 MB are needed. Free some space, or use a smaller model."
    else
        log "$1: the size of the download is unknown; $free MB are free in $3."
        [ "$free" -gt 1024 ] || fail "not enough disk space in $3: less than 1 GB is free. Free some space."
    fi
    if [ -t 0 ] && [ -z "${PULL_YES:-}" ]; then
        printf 'Continue? [y/N] ' >&2
        read -r answer
        case $answer in [yY]*) ;; *) fail "cancelled. Nothing was downloaded." ;; esac
    fi
}

sha256() {
    if have sha256sum; then sha256sum "$1"; elif have shasum; then shasum -a 256 "$1"; else openssl dgst -sha256 -r "$1"; fi | cut -d ' ' -f 1
}

# is_complete FILE SHA256: check the SHA-256 of a file; if it is empty, check that the file is a GGUF
is_complete() {
    [ -s "$1" ] || return 1
    if [ -n "$2" ]; then [ "$(sha256 "$1")" = "$2" ]; else [ "$(head -c 4 "$1")" = GGUF ]; fi
}

# mismatch NAME ACTUAL EXPECTED: fail, because another attempt would download the same file
mismatch() {
    fail "$1 has the SHA-256 $2 instead of $3. Compare both with the one of the publisher: either MODEL_SHA256 is of another file or version, or the file was modified in transit. Another attempt does not help."
}

pull_gguf() {
    url=$model
    case $model in hf:*/*/*)
        path=${model#hf:}
        owner=${path%%/*} && rest=${path#*/}
        url="${HF_ENDPOINT:-https://huggingface.co}/$owner/${rest%%/*}/resolve/main/${rest#*/}"
        ;;
    esac
    file=$folder/$(basename "${url%%\?*}")
    sum=${MODEL_SHA256:-}
    if [ -n "$sum" ] && is_complete "$file" "$sum"; then
        rm -f "$file.part"
        log "$file is complete."
        return
    fi
    have sha256sum || have shasum || have openssl || fail "no program computes a SHA-256. Install sha256sum, shasum or openssl."
    have curl || fail "curl is missing. Install it to download $url, use Ollama's name hf.co/OWNER/REPOSITORY:TAG, or copy the file to $file."
    code=0
    head=$(curl -fsSLI --retry 3 "$url") || code=$?
    if [ "$code" -ne 0 ] && [ "$code" -ne 22 ]; then # 22: the server responds, but may refuse HEAD requests
        if is_complete "$file" "$sum"; then
            log "$file exists, but was not verified: $url cannot be reached. Set MODEL_SHA256 to verify it."
            return
        fi
        fail "$url cannot be reached. Without a network, copy the file to $file and run this again."
    fi
    head=$(printf '%s' "$head" | tr -d '\r' | tr '[:upper:]' '[:lower:]')
    size=$(printf '%s\n' "$head" | sed -n 's/^x-linked-size: *//p; s/^content-length: *//p' | tail -n 1)
    [ -n "$sum" ] || sum=$(printf '%s\n' "$head" | sed -n 's/^x-linked-etag: *"\{0,1\}\([0-9a-f]\{64\}\)"\{0,1\}.*/\1/p' | head -n 1)
    if is_complete "$file" "$sum"; then
        rm -f "$file.part"
        log "$file is complete${sum:+ and verified}."
        return
    fi
    [ -n "$sum" ] || log "The SHA-256 of this file is unknown, so the download is not verified. Set MODEL_SHA256 to verify it."
    got=0
    [ ! -e "$file.part" ] || got=$(wc -c <"$file.part")
    mkdir -p "$folder" || fail "the folder $folder cannot be created. Use another folder."
    [ -w "$folder" ] || fail "the folder $folder is not writable. Use another folder, or change its owner."
    check_space "$(basename "$file")" "$([ "${size:-0}" -eq 0 ] || megabytes $((size - got)))" "$folder"
    n=0
    while :; do
        n=$((n + 1))
        if [ -t 2 ]; then bar=--progress-bar; else bar=-sS; fi
        if [ "${size:-0}" -gt 0 ] && [ -e "$file.part" ] && [ "$(wc -c <"$file.part")" -eq "$size" ]; then break; fi
        code=0
        curl -fL "$bar" -C - -o "$file.part" "$url" || code=$?
        [ "$code" -ne 0 ] || break
        case $code in
            22) fail "the server responded to $url with an error. Check the URL." ;;
            23) fail "the file in $folder cannot be written. Check the free space of the disk and the owner of the folder." ;;
            33) rm -f "$file.part" && n=$((n - 1)) && continue ;; # the server does not support ranges: restart
        esac
        [ "$n" -lt "$max_attempts" ] || fail "the download failed $n times. Run this again to resume it: $file.part has the first part."
        log "The download was interrupted. It is resumed."
        sleep 1
    done
    if ! is_complete "$file.part" "$sum"; then
        actual=$(sha256 "$file.part")
        rm -f "$file.part"
        [ -z "$sum" ] || mismatch "the file from $url was removed: it" "$actual" "$sum"
        fail "the file from $url is not a GGUF, and was removed. Check the URL: it may be that of a web page."
    fi
    mv "$file.part" "$file"
    log "$file is complete${sum:+ and verified}."
}

# known_megabytes MODEL: print the size of a model in the documentation; the registry does not report it
known_megabytes() {
    case $1 in
        qwen3:0.6b) echo 523 ;;
        qwen3:1.7b) echo 1400 ;;
        smollm2:135m) echo 271 ;;
        qwen3.5:0.8b) echo 1000 ;;
        qwen3.5:2b) echo 2700 ;;
        qwen3.5:4b) echo 3400 ;;
        qwen3.5:9b) echo 6600 ;;
    esac
}

pull_ollama() {
    have ollama || fail "the ollama command is missing. Install it to pull $model, or use docker compose --profile local-llm up."
    if ollama show "$model" >/dev/null 2>&1; then
        log "$model is available."
        return
    fi
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    ollama list >/dev/null 2>&1 || fail "no Ollama server responds at ${OLLAMA_HOST:-127.0.0.1:11434}. Start it with: ollama serve"
    models=${MODELS_DIR:-}
    [ ! -d "$models" ] || models=$(cd "$models" && pwd)
    gguf=$models/$(printf '%s' "${model##*/}" | tr ':' '-').gguf
    if [ -n "${MODELS_DIR:-}" ] && [ -s "$gguf" ]; then
        log "Creating $model from $gguf."
        free=$(free_megabytes "${OLLAMA_MODELS:-$HOME/.ollama}")
        needed=$(megabytes "$(wc -c <"$gguf")")
        [ -z "$free" ] || [ "$free" -gt "$needed" ] || fail "not enough disk space for $model: $needed MB are needed, $free MB are free. Free some space."
        is_complete "$gguf" "" || fail "$gguf is not a GGUF file: it does not begin with the letters GGUF. Replace it, or remove it to pull $model."
        [ -n "${MODEL_SHA256:-}" ] || log "The SHA-256 of $gguf is unknown, so the file is not verified. Set MODEL_SHA256 (in compose OLLAMA_MODEL_SHA256) to verify it."
        is_complete "$gguf" "${MODEL_SHA256:-}" || mismatch "$gguf" "$(sha256 "$gguf")" "$MODEL_SHA256"
        printf 'FROM %s\n' "$gguf" >"$work/Modelfile"
        ollama create "$model" -f "$work/Modelfile" || fail "ollama create failed for $gguf. Its message is above."
    else
        check_space "$model" "$(known_megabytes "$model")" "${OLLAMA_MODELS:-$HOME/.ollama}"
        n=0
        while :; do
            n=$((n + 1))
            ollama_pull && break
            [ ! -e "$work/missing" ] || fail "the registry does not have $model. Check the name at ollama.com/library."
            [ "$n" -lt "$max_attempts" ] || fail "the pull of $model failed $n times. Run this again to resume it. Without a network, copy its GGUF to MODELS_DIR/$(basename "$gguf")."
            log "The download was interrupted. It is resumed."
            sleep 1
        done
    fi
    ollama show "$model" >/dev/null || fail "ollama pull succeeded, but the server does not have $model. Check its log."
    log "$model is available."
}

# ollama_pull: pull the model. Without a terminal, print a line for each 10 % instead of a progress bar.
ollama_pull() {
    if [ -t 2 ]; then
        ollama pull ${PULL_INSECURE:+--insecure} "$model"
    else
        ollama pull ${PULL_INSECURE:+--insecure} "$model" 2>&1 | tr '\r' '\n' | awk -v missing="$work/missing" '
            /file does not exist|manifest unknown/ { printf "" >missing }
            match($0, /[0-9]+%/) { tenth = int(substr($0, RSTART, RLENGTH) / 10); if (tenth == last) next; last = tenth; print tenth * 10 "%"; next }
            /[Ee]rror/ { print }' >&2
        ollama show "$model" >/dev/null 2>&1
    fi
}

case $model in
    hf:*/*/*.gguf | http://*.gguf* | https://*.gguf*) pull_gguf ;;
    hf:* | http://* | https://*) fail "$model is not a GGUF file. Use hf:OWNER/REPOSITORY/FILE.gguf, or a URL that ends in .gguf." ;;
    *) pull_ollama ;;
esac
