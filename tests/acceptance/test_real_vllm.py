"""Serving with the real vLLM and the real base model: starts, loads, answers, renders as training does, outlives kill -9."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil
import pytest
from openai.types.responses import Response, ResponseCompletedEvent
from sqlmodel import select

from distill import render
from proxy.student import NoAnswer, Students
from serving.base import prepare
from serving.settings import ServingSettings
from serving.vllm import AdapterMissing, StudentServer
from store import answers, chat, children, migrate, prompts
from store.session import Database
from store.states import EngineStatus, RolloutStage
from store.tables import Adapter, Dataset, Engine, Rollout, Run, Task

pytestmark = pytest.mark.timeout(1800)

MODELS = Path(os.environ.get("STILLROOM_MODELS_DIR", Path(__file__).parents[2] / ".cache" / "models"))
ADAPTERS = ("task_1@v1", "task_2@v1")
SYSTEM = {"role": "system", "content": "You triage support tickets. Answer with a JSON object and nothing else."}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Zürich", "days": 2}'},
}


@dataclass
class Serving:
    """`python -m serving` as a process of its own, and the rows it writes."""

    process: subprocess.Popen[bytes]
    db: Database
    base: Path
    home: Path

    def row(self) -> Engine:
        with self.db.read() as session:
            return session.exec(select(Engine)).one()

    def server(self) -> StudentServer:
        url = self.row().url
        assert url is not None
        return StudentServer(url)

    def until(self, reached: Callable[[Engine], bool], seconds: float) -> Engine:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self.db.read() as session:
                row = session.exec(select(Engine)).first()
            if row is not None:
                assert row.status != EngineStatus.FAILED, row.detail
                if reached(row):
                    return row
            assert self.process.poll() is None, "serving has ended"
            time.sleep(0.2)
        raise AssertionError(f"not within {seconds:.0f} s: {row}")


@pytest.fixture(scope="module")
def base() -> Path:
    return prepare("smollm2", MODELS)


@pytest.fixture(scope="module")
def home(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with two adapters, made by PEFT, strong enough to change what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("home")
    for number, name in enumerate(ADAPTERS):
        torch.manual_seed(number)
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.mul_(0.25)
        model.save_pretrained(folder / "artifacts" / name)
    return folder


@pytest.fixture(scope="module")
def serving(home: Path, base: Path) -> Iterator[Serving]:
    db = Database(ServingSettings(home=home, database_url=None).url)
    migrate.upgrade(db)
    for name in ADAPTERS:
        register(db, home, name)
    environment = {"STILLROOM_HOME": str(home), "STILLROOM_MODELS_DIR": str(MODELS), "PYTHONPATH": str(Path(__file__).parents[2])}
    process = children.spawn([sys.executable, "-m", "serving"], environment=environment)
    try:
        running = Serving(process, db, base, home)
        running.until(lambda row: set(row.loaded) == set(ADAPTERS), 300)
        yield running
    finally:
        children.stop(process, grace=20)
        db.close()


def register(db: Database, home: Path, name: str) -> None:
    task, folder = name.partition("@")[0], home / "artifacts" / name
    sha256 = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    rows = [
        Task(id=task, name=task),
        Dataset(id=f"ds-{task}", task_id=task, content_hash=task, path="x", train_rows=1, holdout_rows=1),
        Run(id=f"run-{task}", task_id=task, dataset_id=f"ds-{task}", base_model="smollm2", recipe={}, recipe_hash="x"),
        Adapter(
            id=name,
            task_id=task,
            version=1,
            run_id=f"run-{task}",
            base_model="smollm2",
            path=f"artifacts/{name}",
            sha256=sha256,
        ),
    ]
    with db.begin() as session:
        for row in rows:
            session.add(row)
            session.flush()


def question(model: str, text: str, **more: Any) -> dict[str, Any]:
    messages = [SYSTEM, {"role": "user", "content": text}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 12, **more}


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end within 5 seconds."""
    deadline = time.monotonic() + 5
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_candidates_are_loaded_and_staged_and_an_unknown_name_is_missing(serving: Serving) -> None:
    with serving.db.read() as session:
        stages = dict(session.exec(select(Rollout.adapter_id, Rollout.stage)).all())
    assert stages == dict.fromkeys(ADAPTERS, RolloutStage.STAGED)
    with serving.server() as server:
        assert set(server.models()) == {"smollm2", *ADAPTERS}
        with pytest.raises(AdapterMissing):
            server.complete(question("task_3@v1", "hello"))


def test_vllm_with_our_worker_computes_what_peft_computes(serving: Serving) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(serving.base)
    ids = render.prompt_ids(tokenizer, [SYSTEM, {"role": "user", "content": "My parcel has not arrived."}])
    for name in ADAPTERS:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(serving.base), serving.home / "artifacts" / name)
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float(), dim=-1)
        with serving.server() as server:
            body = question(name, "My parcel has not arrived.", max_tokens=1, logprobs=True, top_logprobs=5)
            (position,) = server.complete(body)["choices"][0]["logprobs"]["content"]
        assert position["token"] == tokenizer.decode(expected.argmax())
        for top in position["top_logprobs"]:
            token = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(top["token"]))[0]
            assert top["logprob"] == pytest.approx(expected[token].item(), abs=0.15)  # bfloat16 there, float32 here


def test_requests_for_different_adapters_in_one_batch_do_not_mix(serving: Serving) -> None:
    questions = [question(model, f"Ticket {n}: I was charged twice.") for n in range(4) for model in ("smollm2", *ADAPTERS)]
    with serving.server() as server, ThreadPoolExecutor(len(questions)) as pool:
        alone = [text_of(server.complete(each)) for each in questions]
        together = list(pool.map(lambda each: text_of(server.complete(each)), questions))
    assert len({*alone[:3]}) == 3
    assert sum(a == b for a, b in zip(alone, together, strict=True)) >= len(questions) - 1  # a tie may fall the other way


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([{"role": "user", "content": "no system prompt"}], None),
        ([SYSTEM, {"role": "user", "content": "Hallo, wo ist mein Päckchen? 你好 🙂\n\n  two lines "}], None),
        (
            [
                SYSTEM,
                {"role": "user", "content": "first"},
                {"role": "assistant", "content": "an answer"},
                {"role": "user", "content": "second"},
            ],
            None,
        ),
        ([SYSTEM, {"role": "user", "content": [{"type": "text", "text": "one part"}, {"type": "text", "text": "another"}]}], None),
        ([{"role": "developer", "content": "Be short."}, {"role": "user", "content": "hi"}], None),
        ([SYSTEM, {"role": "user", "content": "weather?"}], [WEATHER]),
        (
            [
                SYSTEM,
                {"role": "user", "content": "weather?"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
                {"role": "user", "content": "thanks"},
            ],
            [WEATHER],
        ),
    ],
)
def test_a_training_prompt_has_the_ids_that_vllm_makes_of_the_same_request(
    serving: Serving, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(serving.base)
    with serving.server() as server:
        assert render.prompt_ids(tokenizer, messages, tools) == server.tokenize(ADAPTERS[0], messages, tools)


RESPONSES_WEATHER: dict[str, Any] = {"type": "function", **WEATHER["function"], "strict": True}
RESPONSES_CALL: dict[str, Any] = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "status": "completed",
    **CALL["function"],
}
SAID = [{"type": "output_text", "text": "an ", "annotations": []}, {"type": "output_text", "text": "answer", "annotations": []}]
RESPONSES_QUESTION = {
    "model": "big",
    "instructions": SYSTEM["content"],
    "input": "My parcel has not arrived.",
    "metadata": {"a": "b"},
}
LABEL = {
    "type": "object",
    "properties": {"label": {"enum": ["card", "parcel"]}},
    "required": ["label"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "request_",
    [
        {"input": "no system prompt"},
        {
            "instructions": "Be short.",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "Päckchen? 🙂\n\n two "}]}],
        },
        {
            "input": [
                {"role": "developer", "content": "Be short."},
                {
                    "role": "user",
                    "content": [{"type": "input_text", "text": "one part"}, {"type": "input_text", "text": "another"}],
                },
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
                {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": SAID},
                {"role": "user", "content": "second"},
            ]
        },
        {
            "instructions": "Be short.",
            "input": [
                {"role": "user", "content": "weather?"},
                RESPONSES_CALL,
                {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
                {"role": "user", "content": "thanks"},
            ],
            "tools": [RESPONSES_WEATHER],
        },
    ],
)
def test_a_responses_request_has_the_ids_of_the_pair_that_is_made_of_it(serving: Serving, request_: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    view = chat.as_chat(chat.RESPONSES, request_)
    expected = render.prompt_ids(AutoTokenizer.from_pretrained(serving.base), view["messages"], view.get("tools"))
    body = prompts.for_student({**request_, "max_output_tokens": 1}, ADAPTERS[0], None, chat.RESPONSES)
    answer = httpx.post(f"{serving.row().url}/v1/responses", json={**body, "enable_response_messages": True}, timeout=60)
    assert answer.json()["input_messages"][0]["tokens"] == expected
    assert answer.json()["model"] == ADAPTERS[0]


def asked(serving: Serving, model: str, endpoint: str, request: dict[str, Any]) -> bytes:
    """What a client gets that asks the proxy's endpoint, where the student answers it."""

    async def ask() -> bytes:
        students = Students(timeout=60)
        try:
            answer = await students.ask([str(serving.row().url)], model, request, serving.row().context, endpoint)
            return b"".join([chunk async for chunk in answer])
        finally:
            await students.close()

    return asyncio.run(ask())


def test_a_response_keeps_to_its_schema_whole_and_streamed(serving: Serving) -> None:
    wanted = {"text": {"format": {"type": "json_schema", "name": "x", "schema": LABEL, "strict": True}}, "max_output_tokens": 200}
    whole = Response.model_validate_json(asked(serving, "smollm2", chat.RESPONSES, {**RESPONSES_QUESTION, **wanted}))
    assert (whole.model, whole.status, whole.metadata) == ("big", "completed", {"a": "b"})
    assert orjson.loads(whole.output_text)["label"] in ("card", "parcel")
    body = asked(serving, "smollm2", chat.RESPONSES, {**RESPONSES_QUESTION, **wanted, "stream": True})
    happened = [orjson.loads(data) for data in answers.events(body)]
    assert [event["sequence_number"] for event in happened] == list(range(len(happened)))
    assert body.count(b"event: ") == len(happened)
    assert {event["response"]["model"] for event in happened if "response" in event} == {"big"}
    streamed = ResponseCompletedEvent.model_validate(happened[-1]).response
    assert orjson.loads(streamed.output_text) == orjson.loads(whole.output_text)
    read = answers.read_stream(body, chat.RESPONSES)
    assert (read.ended, read.finish_reason, read.message["content"]) == (True, "stop", streamed.output_text)
    assert whole.usage is not None
    assert read.prompt_tokens == whole.usage.input_tokens


def test_a_function_is_called_in_a_response(serving: Serving) -> None:
    wanted = {"tools": [RESPONSES_WEATHER], "tool_choice": "required", "max_output_tokens": 100}
    for streamed in (False, True):
        body = asked(serving, "smollm2", chat.RESPONSES, {**RESPONSES_QUESTION, **wanted, "stream": streamed})
        read = answers.read(body, stream=streamed, endpoint=chat.RESPONSES)
        assert read.finish_reason == "tool_calls"
        assert read.message["tool_calls"][0]["function"]["name"] == "get_weather"


def test_a_response_that_is_cut_short_is_the_teachers_and_a_stream_says_so(serving: Serving) -> None:
    request = {**RESPONSES_QUESTION, "input": "Tell me a long story.", "instructions": None, "max_output_tokens": 8}
    with pytest.raises(NoAnswer, match="length"):
        asked(serving, "smollm2", chat.RESPONSES, request)
    body = asked(serving, "smollm2", chat.RESPONSES, {**request, "stream": True})
    assert b"event: response.incomplete\n" in body
    assert answers.read_stream(body, chat.RESPONSES).finish_reason == "length"


def test_each_endpoint_gives_the_same_answer_in_its_own_shape(serving: Serving) -> None:
    question = "What is the capital of France? Answer in one word."
    requests: dict[str, dict[str, Any]] = {
        chat.CHAT: {"messages": [{"role": "user", "content": question}]},
        chat.TEXT: {"prompt": question},
        chat.RESPONSES: {"input": question},
    }
    found = {
        answers.read(
            asked(serving, "smollm2", endpoint, {"model": "big", **request, **more}), stream=bool(more), endpoint=endpoint
        ).message["content"]
        for endpoint, request in requests.items()
        for more in ({}, {"stream": True})
    }
    assert len(found) == 1


def test_a_vllm_killed_in_the_middle_of_an_answer_comes_back_with_its_adapters(serving: Serving) -> None:
    before = serving.row()
    assert before.pid is not None
    with serving.server() as server:
        expected = text_of(server.complete(question(ADAPTERS[0], "Where is my parcel?")))
    processes = [psutil.Process(before.pid), *psutil.Process(before.pid).children(recursive=True)]
    assert len(processes) > 1
    body = question(ADAPTERS[0], "Tell me everything.", max_tokens=2000, stream=True, ignore_eos=True)
    with httpx.stream("POST", f"{before.url}/v1/chat/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        os.kill(before.pid, signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            list(lines)
    serving.until(lambda row: row.pid != before.pid, 20)
    after = serving.until(lambda row: row.status == EngineStatus.READY, 300)
    assert set(after.loaded) == set(ADAPTERS)
    assert after.restarts == before.restarts + 1
    assert gone(processes)
    with serving.server() as server:
        assert text_of(server.complete(question(ADAPTERS[0], "Where is my parcel?"))) == expected


def test_serving_told_to_stop_takes_vllm_with_it(serving: Serving) -> None:
    pid = serving.row().pid
    assert pid is not None
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    serving.process.terminate()
    assert serving.process.wait(20) == 0
    assert gone(processes)
    row = serving.row()
    assert (row.status, row.loaded) == (EngineStatus.DOWN, [])
