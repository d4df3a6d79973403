# syntax=docker/dockerfile:1
# Two images, from what scripts/release and scripts/wheel left in dist/:
#
#   docker build --target runner -t mmx .          # run, chat, serve, export, verify: no libtorch
#   docker build --target train -t mmx-train .     # and `mmx train`, with torch's CUDA libraries
#
#   docker run --rm -it -v "$PWD:/work" mmx chat model-q4_0.gguf
#   docker run --rm -p 8080:8080 -v "$PWD:/work" mmx serve model-q4_0.gguf --host 0.0.0.0
#   docker run --rm --gpus all --shm-size 1g -v "$PWD:/work" mmx-train train pretrain ...

FROM debian:12-slim AS runner
# certificates of the authorities, for models of hubs
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,source=dist,target=/dist \
    --mount=type=bind,source=scripts/install.sh,target=/install.sh \
    sh /install.sh --from /dist --prefix /usr/local
RUN useradd --create-home --uid 1000 mmx
USER 1000
WORKDIR /work
EXPOSE 8080
ENTRYPOINT ["mmx"]
CMD ["--help"]

FROM python:3.12-slim-bookworm AS train
# hadolint ignore=DL3013
RUN --mount=type=bind,source=dist,target=/dist \
    pip install --no-cache-dir "$(echo /dist/mmx_lm-*_"$(uname -m)".whl)[train]"
RUN useradd --create-home --uid 1000 mmx
USER 1000
WORKDIR /work
EXPOSE 8080
ENTRYPOINT ["mmx"]
CMD ["--help"]
