# fewtokens with all extras but vllm and sim.
#
#     docker build --tag fewtokens .                          # torch from the package index, with CUDA on Linux
#     docker build --tag fewtokens:cpu --build-arg TORCH_INDEX=URL .   # URL: an index of wheels for CPUs, 3 GB smaller
#     docker run --rm --gpus all --volume "$PWD:/data" fewtokens tokenize clip.mp4 --with "tome(keep=0.1)"
#
# CUDA comes with the wheel of torch; the host needs only the driver and its container toolkit.
ARG PYTHON=3.13
FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG TORCH_INDEX=""
ARG EXTRAS="llm,gguf,train,lora,tokenizers,show,onnx,eval"
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/cache/huggingface
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /wheels /tmp/wheels
RUN torch="$(grep '^torch==' /tmp/constraints.txt)" \
    && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch" \
    && pip install --constraint /tmp/constraints.txt "$(echo /tmp/wheels/*.whl)[${EXTRAS}]" \
    && rm -r /tmp/wheels /tmp/constraints.txt \
    && fewtokens doctor
RUN useradd --create-home user && mkdir --parents /data /cache && chown user /data /cache
USER user
WORKDIR /data
ENTRYPOINT ["fewtokens"]
CMD ["--help"]
