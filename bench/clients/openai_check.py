"""The OpenAI package, unchanged, against a server: chat and completions, streamed and not, usage. Prints one JSON line.

usage: openai_check.py BASE_URL REQUESTS
"""
import json
import sys
import time

from openai import BadRequestError, OpenAI

url, n = sys.argv[1], int(sys.argv[2])
client = OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
model = client.models.list().data[0].id
ttft, e2e, tokens = [], [], 0


def streamed(chunks, text):
    global tokens
    begin, first, usage, finish = time.perf_counter(), None, None, None
    for chunk in chunks():
        if chunk.usage is not None:
            usage = chunk.usage
        for choice in chunk.choices:
            if first is None:
                first = time.perf_counter() - begin
            text(choice)
            finish = choice.finish_reason or finish
    e2e.append(time.perf_counter() - begin)
    ttft.append(first)
    assert finish == "length", finish
    assert usage.completion_tokens == 16 and usage.prompt_tokens > 0, usage
    tokens += usage.completion_tokens


messages = [{"role": "user", "content": "Say something about lakes."}]
extra = {"ignore_eos": True}
for i in range(n):
    streamed(lambda: client.chat.completions.create(model=model, messages=messages, max_tokens=16, stream=True,
                                                    stream_options={"include_usage": True}, extra_body=extra), lambda c: c.delta.content)
    streamed(lambda: client.completions.create(model=model, prompt="A lake %d" % i, max_tokens=16, stream=True,
                                               stream_options={"include_usage": True}, extra_body=extra), lambda c: c.text)
for kind in ("chat", "completion"):
    begin = time.perf_counter()
    if kind == "chat":
        r = client.chat.completions.create(model=model, messages=messages, max_tokens=16, n=2, logprobs=True, top_logprobs=2, extra_body=extra)
        assert len(r.choices) == 2 and all(c.message.content for c in r.choices)
        assert all(len(c.logprobs.content) == 16 and len(c.logprobs.content[0].top_logprobs) == 2 for c in r.choices)
        assert r.usage.completion_tokens == 32
        tokens += 32
    else:
        r = client.completions.create(model=model, prompt=["one", "two"], max_tokens=16, logprobs=1, extra_body=extra)
        assert len(r.choices) == 2 and all(len(c.logprobs.tokens) == 16 for c in r.choices)
        tokens += r.usage.completion_tokens
    assert all(c.finish_reason == "length" for c in r.choices)
try:
    client.completions.create(model=model, prompt="x", max_tokens=16, temperature=-1)
    raise SystemExit("a negative temperature was accepted")
except BadRequestError as e:
    assert e.status_code == 400
print(json.dumps({"requests": 2 * n, "output_tokens": tokens, "mean_ttft_ms": 1e3 * sum(ttft) / len(ttft), "mean_e2e_ms": 1e3 * sum(e2e) / len(e2e)}))
