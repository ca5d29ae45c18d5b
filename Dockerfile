# fastkd with all that it runs on: docker build -t fastkd . && docker run --gpus all --ipc host -v "$PWD:/work" fastkd --help
FROM debian:bookworm-slim AS build
# The release pins the packages; a version pinned here is gone from its archive after the next update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        g++ libjpeg-dev libopencv-dev libturbojpeg0-dev pkg-config python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/fastkd \
    && /opt/fastkd/bin/pip install --no-cache-dir --constraint tools/constraints.txt ".[report,parquet]"

# Without what was needed to compile FFCV and the decoder alone; torch.compile (--compile) takes g++ and Python's headers.
FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        g++ libgl1 libglib2.0-0 libjpeg62-turbo libopencv-core406 libopencv-imgproc406 libturbojpeg0 python3-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/fastkd /opt/fastkd
ENV PATH=/opt/fastkd/bin:$PATH
WORKDIR /work
ENTRYPOINT ["fastkd"]
CMD ["--help"]
