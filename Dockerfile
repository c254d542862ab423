# The server on a processor (x86-64 with AVX2): `docker build -t llava-sae-cpp .`; docs/serve.md says how to start it.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ libclang-dev make python3 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
ARG TARGET_CPU=x86-64-v3
RUN RUSTFLAGS="-C target-cpu=$TARGET_CPU" cargo build --release --locked --package llava-sae-cpp --bin llava-sae-cpp \
    && strip target/release/llava-sae-cpp \
    && python3 scripts/third-party-licences.py -o THIRD-PARTY-LICENCES.txt

FROM debian:bookworm-slim
RUN useradd --uid 10001 --create-home llava && install -d -o llava -g llava /models
COPY --from=build /build/target/release/llava-sae-cpp /usr/local/bin/
COPY --from=build /build/LICENSE-MIT /build/LICENSE-APACHE /build/THIRD-PARTY-LICENCES.txt /usr/share/doc/llava-sae-cpp/
USER 10001
# What `pull` downloads and makes stays in the volume, beside model folders of one's own.
ENV HF_HOME=/models/huggingface LLAVA_SAE_MODELS=/models
WORKDIR /models
VOLUME /models
EXPOSE 8080
HEALTHCHECK --start-period=10m \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /health HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && head -1 <&3 | grep -q 200"]
# Other addresses than this machine's demand a key: without its file the server does not start.
ENTRYPOINT ["llava-sae-cpp", "serve", "--host", "0.0.0.0", "--api-key-file", "/run/secrets/api-key"]
