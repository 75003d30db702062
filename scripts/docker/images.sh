# shellcheck shell=bash
# The images that the Dockerfile and the compose file start from. Sourced by scripts/test-docker.
#
# They are pulled where a container registry can be reached. Elsewhere stand-ins of the same names are made from Debian
# packages and this machine's Rust, no richer than the real ones: a package that the Dockerfile forgets to install must
# be missing here too. llama.cpp's server image is always a stand-in, so that the test needs no gigabytes: the same
# environment variables, port, health command and protocol, from xllamacpp. Grafana is in no package: where its image
# cannot be pulled, $GRAFANA stays empty, and its files are read without it.

make_images() {
    local builder prometheus grafana
    builder=$(sed -n 's/^FROM \(rust:[^ ]*\) AS builder$/\1/p' Dockerfile)
    [[ -n $builder ]] || fail "the Dockerfile has no \`FROM rust:... AS builder\`"
    prometheus=$(image_of prometheus) grafana=$(image_of grafana) GRAFANA=''
    pulled debian:bookworm-slim || step "debian:bookworm-slim cannot be pulled; making a stand-in" make_debian
    pulled "$builder" || step "$builder cannot be pulled; making a stand-in" make_rust "$builder"
    step "llama-server's stand-in" make_llama
    pulled "$prometheus" || step "$prometheus cannot be pulled; making a stand-in" make_prometheus "$prometheus"
    pulled "$VALKEY_IMAGE" || step "$VALKEY_IMAGE cannot be pulled; making a stand-in" make_valkey "$VALKEY_IMAGE"
    pulled "$HAPROXY_IMAGE" || step "$HAPROXY_IMAGE cannot be pulled; making a stand-in" make_haproxy "$HAPROXY_IMAGE"
    # shellcheck disable=SC2034 # for scripts/test-docker
    if pulled "$grafana"; then GRAFANA=$grafana; fi
}

# image_of SERVICE: as the compose file names it.
image_of() {
    compose --profile grafana config --format json |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["services"][sys.argv[1]]["image"])' "$1"
}

pulled() {
    timeout 300 docker pull -q "$1" >/dev/null 2>&1
}

make_debian() {
    have mmdebstrap || apt_install mmdebstrap || fail "mmdebstrap is missing: apt-get install mmdebstrap"
    TMPDIR=$ENGINE mmdebstrap --quiet --variant=minbase \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        bookworm - | docker import -c 'CMD ["bash"]' - debian:bookworm-slim >/dev/null
}

# The official image: Rust by rustup, a C compiler and linker, certificates; neither make nor cmake.
make_rust() {
    local tag=$1 toolchain context=$ENGINE/rust
    toolchain=$(rustc --print sysroot)
    mkdir -p "$context/toolchain/bin"
    cp -aL "$toolchain/lib" "$context/toolchain/lib"
    cp -aL "$toolchain"/bin/{cargo,rustc} "$context/toolchain/bin/"
    cp -L /etc/ssl/certs/ca-certificates.crt "$context/"
    cat >"$context/Dockerfile" <<EOF
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY toolchain /usr/local/cargo
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENV ${QUICK:+CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16} STAND_IN=1
EOF
    docker build -q --network host -t "$tag" "$context" >/dev/null
    rm -rf "$context"
}

# The official image has these two programs, BusyBox (its wget is in the health check) and the user `nobody`.
make_prometheus() {
    local tag=$1 context=$ENGINE/prometheus
    need_prometheus
    mkdir -p "$context"
    cp "$PROMETHEUS_BIN"/{prometheus,promtool} "$context/"
    cat >"$context/Dockerfile" <<'EOF'
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
COPY prometheus promtool /bin/
RUN mkdir /prometheus && chown nobody:nogroup /prometheus
WORKDIR /prometheus
USER nobody
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
EOF
    docker build -q --network host -t "$tag" "$context" >/dev/null
    rm -rf "$context"
}

# Debian has Redis, of the same protocol; here under the names of the official image's programs, which ask nobody in
# their network for a password either.
make_valkey() {
    docker build -q --network host -t "$1" - >/dev/null <<'EOF'
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/* \
    && ln -s redis-cli /usr/bin/valkey-cli \
    && printf '#!/bin/sh\nexec redis-server "$@" --protected-mode no\n' >/usr/bin/valkey-server \
    && chmod +x /usr/bin/valkey-server
VOLUME /data
WORKDIR /data
EOF
}

make_haproxy() {
    docker build -q --network host -t "$1" - >/dev/null <<'EOF'
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends haproxy && rm -rf /var/lib/apt/lists/*
USER haproxy
CMD ["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
EOF
}

make_llama() {
    local context=$ENGINE/llama
    mkdir -p "$context"
    cp -a "$ROOT"/.llama/lib/python3.*/site-packages/xllamacpp* "$context/"
    cp scripts/llama-server.py "$context/"
    cat >"$context/llama-server" <<'EOF'
#!/bin/sh
exec python3 /app/llama-server.py "$LLAMA_ARG_MODEL" "$LLAMA_ARG_PORT" --host "$LLAMA_ARG_HOST" \
    --ctx "$LLAMA_ARG_CTX_SIZE" --parallel "$LLAMA_ARG_N_PARALLEL"
EOF
    chmod +x "$context/llama-server"
    cat >"$context/Dockerfile" <<'EOF'
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends curl libgomp1 python3 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY . .
ENTRYPOINT ["/app/llama-server"]
EOF
    docker build -q --network host -t "$LLAMA_IMAGE" "$context" >/dev/null
    rm -rf "$context"
}
