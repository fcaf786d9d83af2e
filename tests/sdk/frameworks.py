"""`python frameworks.py NAME BASE_URL`: the framework asks for a whole answer, then for a stream; prints the texts as JSON."""

import asyncio
import json
import sys
from typing import Any

KEY = "sk-test-key-1"
ASKED = "Say something."


def langchain(url: str) -> list[str]:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="gpt-x", base_url=url, api_key=KEY)
    return [str(model.invoke(ASKED).content), "".join(str(chunk.content) for chunk in model.stream(ASKED))]


def llamaindex(url: str) -> list[str]:
    from llama_index.llms.openai import OpenAI

    model = OpenAI(model="gpt-4o", api_base=url, api_key=KEY)
    return [model.complete(ASKED).text, "".join(part.delta or "" for part in model.stream_complete(ASKED))]


def instructor(url: str) -> list[str]:
    import instructor
    import openai
    from pydantic import BaseModel

    class Weather(BaseModel):
        city: str

    client = instructor.from_openai(openai.OpenAI(base_url=url, api_key=KEY), mode=instructor.Mode.TOOLS)
    asks: Any = {"model": "gpt-x", "messages": [{"role": "user", "content": ASKED}], "extra_headers": {"x-mock": "weather"}}
    *_, streamed = client.chat.completions.create_partial(response_model=Weather, **asks)
    return [client.chat.completions.create(response_model=Weather, **asks).city, streamed.city]


def agents(url: str) -> list[str]:
    from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)

    async def run() -> list[str]:
        client = AsyncOpenAI(base_url=url, api_key=KEY)
        said = []
        for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
            agent = Agent(name="a", instructions="Be brief.", model=kind(model="gpt-x", openai_client=client))
            said.append((await Runner.run(agent, ASKED)).final_output)
            streamed = Runner.run_streamed(agent, ASKED)
            async for _ in streamed.stream_events():
                pass
            said.append(streamed.final_output)
        return said

    return asyncio.run(run())


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](sys.argv[2])))
