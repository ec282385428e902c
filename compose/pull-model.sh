#!/bin/sh
# Downloads a model: an Ollama tag into the Ollama server, or a GGUF file into a folder.
#
#   compose/pull-model.sh qwen3:0.6b
#   compose/pull-model.sh hf:MaziyarPanahi/Qwen3-0.6B-GGUF/Qwen3-0.6B.Q4_K_M.gguf [FOLDER]
#   compose/pull-model.sh https://example.org/model.gguf [FOLDER]
#
# Prints the size of the download before it starts, checks the free space of the disk, and resumes a broken download.
# Exit code 0 only if the model is complete.
#
#   MODELS_DIR     a folder with GGUF files (qwen3-0.6b.gguf for qwen3:0.6b), which are used without a network
#   MODEL_SHA256   the SHA-256 of the GGUF; by default the one that Hugging Face reports
#   PULL_YES=1     do not ask for confirmation (without a terminal there is no question)
#   PULL_TRIES=5   the number of attempts at a download that breaks
#   PULL_INSECURE=1  for your own Ollama registry without TLS
#   OLLAMA_HOST    the Ollama server, as for its command line
set -eu

say() { printf '%s\n' "$*" >&2; }
fail() { say "pull-model: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

model=${1:-}
case $model in '' | -*) sed -n '2,18s/^# \{0,1\}//p' "$0" >&2; exit 2 ;; esac
folder=${2:-${MODELS_DIR:-./models}}
tries=${PULL_TRIES:-5}

megabytes() { echo $((($1 + 1048575) / 1048576)); }

# free FOLDER: print the free megabytes of the disk of a folder, which may not exist yet
free() {
    place=$1
    while [ ! -d "$place" ]; do place=$(dirname "$place"); done
    df -Pk "$place" | awk 'NR == 2 { for (at = NF; at > 1; at--) if ($at ~ /^[0-9]+%$/ && $(at - 1) ~ /^[0-9]+$/) { print int($(at - 1) / 1024); exit } }'
}

# afford WHAT MEGABYTES FOLDER: print the size, check the free space, ask for confirmation on a terminal
afford() {
    left=$(free "$3")
    if [ -z "$left" ]; then
        say "$1: ${2:-an unknown number of} MB to download; how much is free in $3 cannot be told."
    elif [ -n "$2" ]; then
        say "$1: $2 MB to download; $left MB are free in $3."
        [ "$left" -gt $(($2 + $2 / 20 + 50)) ] || fail "not enough room in $3: $2 MB are needed and a little more. Free some, or take a smaller model."
    else
        say "$1: its size is not known before the download; $left MB are free in $3."
        [ "$left" -gt 1024 ] || fail "not enough room in $3: less than 1 GB is free."
    fi
    if [ -t 0 ] && [ -z "${PULL_YES:-}" ]; then
        printf 'Go on? [y/N] ' >&2
        read -r answer
        case $answer in [yY]*) ;; *) fail "stopped, nothing was downloaded" ;; esac
    fi
}

sha256() {
    if have sha256sum; then sha256sum "$1"; elif have shasum; then shasum -a 256 "$1"; else openssl dgst -sha256 -r "$1"; fi | cut -d ' ' -f 1
}

# whole FILE SHA256: check a file; without a checksum it must begin as a GGUF
whole() {
    [ -s "$1" ] || return 1
    if [ -n "$2" ]; then [ "$(sha256 "$1")" = "$2" ]; else [ "$(head -c 4 "$1")" = GGUF ]; fi
}

# mismatch WHAT GOT WANTED: fail, because another download would get the same file
mismatch() {
    fail "$1 has the SHA-256 $2, and must have $3. Compare both with what its publisher says: either the sum is of another file or version, or somebody on the way has changed the file. To run this again will not help."
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
    if [ -n "$sum" ] && whole "$file" "$sum"; then
        rm -f "$file.part"
        say "$file is there and whole."
        return
    fi
    have sha256sum || have shasum || have openssl || fail "sha256sum, shasum or openssl is needed to check what arrives"
    have curl || fail "curl is needed to download $url. In Ollama's own spelling: hf.co/OWNER/REPOSITORY:TAG; or put the file at $file."
    code=0
    head=$(curl -fsSLI --retry 3 "$url") || code=$?
    if [ "$code" -ne 0 ] && [ "$code" -ne 22 ]; then # 22: the server responds, but may refuse HEAD requests
        if whole "$file" "$sum"; then
            say "$file is there; $url cannot be reached, so it was not checked. MODEL_SHA256 says what it must be."
            return
        fi
        fail "$url cannot be reached. Without a network: put the file at $file, and run this again."
    fi
    head=$(printf '%s' "$head" | tr -d '\r' | tr '[:upper:]' '[:lower:]')
    size=$(printf '%s\n' "$head" | sed -n 's/^x-linked-size: *//p; s/^content-length: *//p' | tail -n 1)
    [ -n "$sum" ] || sum=$(printf '%s\n' "$head" | sed -n 's/^x-linked-etag: *"\{0,1\}\([0-9a-f]\{64\}\)"\{0,1\}.*/\1/p' | head -n 1)
    if whole "$file" "$sum"; then
        rm -f "$file.part"
        say "$file is there${sum:+ and whole}."
        return
    fi
    [ -n "$sum" ] || say "No SHA-256 is known of this file: what arrives cannot be checked. MODEL_SHA256 can say it."
    got=0
    [ ! -e "$file.part" ] || got=$(wc -c <"$file.part")
    mkdir -p "$folder" || fail "$folder cannot be made"
    [ -w "$folder" ] || fail "nothing can be written in $folder: choose another folder, or change its owner"
    afford "$(basename "$file")" "$([ "${size:-0}" -eq 0 ] || megabytes $((size - got)))" "$folder"
    n=0
    while :; do
        n=$((n + 1))
        if [ -t 2 ]; then bar=--progress-bar; else bar=-sS; fi
        if [ "${size:-0}" -gt 0 ] && [ -e "$file.part" ] && [ "$(wc -c <"$file.part")" -eq "$size" ]; then break; fi
        code=0
        curl -fL "$bar" -C - -o "$file.part" "$url" || code=$?
        [ "$code" -ne 0 ] || break
        case $code in
            22) fail "$url cannot be had: the server refuses it" ;;
            23) fail "nothing can be written in $folder: the disk is full, or belongs to somebody else" ;;
            33) rm -f "$file.part" && n=$((n - 1)) && continue ;; # a server without ranges: start again
        esac
        [ "$n" -lt "$tries" ] || fail "the download broke off $n times; what has arrived is kept in $file.part. Run this again to go on."
        say "The download broke off; it goes on."
        sleep 1
    done
    if ! whole "$file.part" "$sum"; then
        is=$(sha256 "$file.part")
        rm -f "$file.part"
        [ -z "$sum" ] || mismatch "What arrived from $url was thrown away: it" "$is" "$sum"
        fail "what arrived from $url is no GGUF, and was thrown away: most likely a web page that says why."
    fi
    mv "$file.part" "$file"
    say "$file is there${sum:+ and whole}."
}

# known MODEL: print the megabytes of a model that the documentation names; no registry reports them
known() {
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
    have ollama || fail "the ollama command is needed for $model. In compose: docker compose --profile local-llm up"
    if ollama show "$model" >/dev/null 2>&1; then
        say "$model is there."
        return
    fi
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    ollama list >/dev/null 2>&1 || fail "no Ollama server answers at ${OLLAMA_HOST:-127.0.0.1:11434}. Start it first: ollama serve"
    seeds=${MODELS_DIR:-}
    [ ! -d "$seeds" ] || seeds=$(cd "$seeds" && pwd)
    seed=$seeds/$(printf '%s' "${model##*/}" | tr ':' '-').gguf
    if [ -n "${MODELS_DIR:-}" ] && [ -s "$seed" ]; then
        say "$model is made from $seed."
        left=$(free "${OLLAMA_MODELS:-$HOME/.ollama}")
        need=$(megabytes "$(wc -c <"$seed")")
        [ -z "$left" ] || [ "$left" -gt "$need" ] || fail "not enough room for $model: $need MB are needed, $left MB are free"
        whole "$seed" "" || fail "$seed is no GGUF: it does not begin with the letters GGUF. Put another file there, or remove it to pull $model"
        [ -n "${MODEL_SHA256:-}" ] || say "No SHA-256 is known of $seed: it is taken as it is. MODEL_SHA256 (in compose OLLAMA_MODEL_SHA256) can say what it must be."
        whole "$seed" "${MODEL_SHA256:-}" || mismatch "$seed" "$(sha256 "$seed")" "$MODEL_SHA256"
        printf 'FROM %s\n' "$seed" >"$work/Modelfile"
        ollama create "$model" -f "$work/Modelfile" || fail "Ollama could not take $seed"
    else
        afford "$model" "$(known "$model")" "${OLLAMA_MODELS:-$HOME/.ollama}"
        n=0
        while :; do
            n=$((n + 1))
            fetch && break
            [ ! -e "$work/missing" ] || fail "$model could not be pulled: the registry does not have it. Check its name at ollama.com/library"
            [ "$n" -lt "$tries" ] || fail "$model could not be pulled, $n times. What has arrived is kept: run this again to go on. Without a network: put its GGUF at MODELS_DIR/$(basename "$seed")."
            say "The download broke off; it goes on."
            sleep 1
        done
    fi
    ollama show "$model" >/dev/null || fail "Ollama says that it has $model, and does not"
    say "$model is there."
}

# fetch: pull the model; without a terminal, print a line for every 10 % instead of a bar
fetch() {
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
    hf:* | http://* | https://*) fail "$model is no GGUF file: hf:OWNER/REPOSITORY/FILE.gguf, or a URL that ends in .gguf" ;;
    *) pull_ollama ;;
esac
