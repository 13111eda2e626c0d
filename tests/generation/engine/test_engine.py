"""The engine returns what each request alone would get, and no request affects another."""

import dataclasses
import threading
import time

import jax
import numpy as np
import pytest

from janus_jax.config import Execution
from janus_jax.errors import JanusError
from janus_jax.generation.engine import (
    ChatRequest,
    EditRequest,
    Engine,
    EngineClosed,
    EngineOptions,
    Failed,
    Finished,
    GenerateRequest,
    Overloaded,
    PartialPicture,
    Picture,
    TextPiece,
)
from janus_jax.generation.engine import slots as device
from janus_jax.models.factory import make_model
from janus_jax.pretrained import Pretrained, load_params
from janus_jax.sharding import make_mesh
from tests import tiny

TIMEOUT = 300
# Two numbers of rows and two lengths, so that the cache grows and shrinks.
OPTIONS = EngineOptions(slots=8, rows=(3,), max_length=384, lengths=(192,), buckets=(64, 256))


def user(text, *images):
    return [{"role": "user", "content": "<image_placeholder>\n" * len(images) + text, "images": list(images)}]


SYSTEM = "Answer in one short sentence about what you see in the picture. " * 3

REQUESTS = {
    "greedy": ChatRequest(messages=user("Hello"), max_new_tokens=30),
    "sampled": ChatRequest(messages=user("Two birds"), max_new_tokens=40, temperature=1.0, seed=5),
    "filtered": ChatRequest(messages=user("A tree"), max_new_tokens=9, temperature=1.3, top_k=40, top_p=0.9, seed=6),
    "picture": ChatRequest(messages=user("What is in the picture?", tiny.picture(0)), max_new_tokens=20),
    "no system prompt": ChatRequest(messages=user("Hi"), max_new_tokens=5, system_prompt="", temperature=0.7),
    "system prompt": ChatRequest(messages=user("Hello"), max_new_tokens=12, system_prompt=SYSTEM),
    "same system prompt": ChatRequest(
        messages=user("What is it?", tiny.picture(3)), max_new_tokens=20, temperature=1.0, seed=7, system_prompt=SYSTEM
    ),
    "image": GenerateRequest(prompt="A small red boat on a quiet lake", seed=1),
    "images": GenerateRequest(prompt="A tree", n=3, seed=2, settings={"guidance_scale": 3.0, "temperature": 0.9}),
    "unguided": GenerateRequest(prompt="Two birds", n=2, seed=3, settings={"guidance_scale": 1.0, "top_k": 20}),
    "edit": EditRequest(images=[tiny.picture(1)], instruction="Make it red", seed=4),
    "edit of tokens": EditRequest(
        images=[tiny.picture(2)], instruction="Add a bird", n=2, seed=5, settings={"style": "janus_pro_r1_edit"}
    ),
}


FAST = ("greedy", "picture", "image", "edit")


@pytest.fixture(scope="module")
def janus():
    return tiny.pretrained()


@pytest.fixture(scope="module")
def alone(janus):
    """Returns the results of requests without the engine."""
    results = {}

    def run(name):
        if name not in results:
            results[name] = run_alone(janus, REQUESTS[name])
        return results[name]

    return run


def run_alone(model, request):
    if isinstance(request, ChatRequest):
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")
        options = {name: getattr(request, name) for name in names}
        if request.system_prompt is not None:
            options["system_prompt"] = request.system_prompt
        return "".join(model.chat_stream(request.messages, **options)), []
    if isinstance(request, EditRequest):
        return "", model.edit(list(request.images), request.instruction, request.n, request.seed, **request.settings)
    return "", model.generate(request.prompt, request.n, request.seed, **request.settings)[0]


@pytest.fixture(scope="module")
def engine(janus):
    engine = Engine(janus, OPTIONS)
    engine.start(warm_up=False)
    yield engine
    engine.stop()


def idle_stats(engine):
    """Returns the statistics after the last request. A request is counted after its last event."""
    while (stats := engine.stats()).running:
        time.sleep(0.01)
    return stats


def assert_equal(completion, expected):
    text, images = expected
    assert completion.text == text
    assert len(completion.images) == len(images)
    for image, other in zip(completion.images, images, strict=True):
        # The decoder rounds differently in a batch of another size; another token changes a pixel by more.
        assert np.abs(np.asarray(image, np.int32) - np.asarray(other)).max() <= 1


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.nightly) for name in REQUESTS]
)
def test_single_request_equals_the_request_alone(engine, alone, name):
    assert_equal(engine.submit(REQUESTS[name]).result(TIMEOUT), alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_random_arrivals_and_cancellations(engine, alone, seed):
    rng = np.random.default_rng(seed)
    names = rng.permutation([*REQUESTS, *REQUESTS])
    handles, cancelled = [], set()
    for name in names:
        handles.append(engine.submit(REQUESTS[name]))
        time.sleep(rng.exponential(0.02))
        if rng.random() < 0.3:
            number = int(rng.integers(len(handles)))
            handles[number].cancel()
            cancelled.add(number)
    for number, (name, handle) in enumerate(zip(names, handles, strict=True)):
        completion = handle.result(TIMEOUT)
        if number not in cancelled:
            assert completion.finished.reason != "cancelled"
        if completion.finished.reason != "cancelled":
            assert_equal(completion, alone(name))
    stats = idle_stats(engine)
    assert (stats.waiting, stats.rows_used) == (0, 0)


@pytest.mark.nightly
def test_requests_of_many_threads(engine, alone):
    results = {}

    def ask(name):
        results[name] = engine.submit(REQUESTS[name]).result(TIMEOUT)

    threads = [threading.Thread(target=ask, args=(name,)) for name in REQUESTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, result in results.items():
        assert_equal(result, alone(name))


def test_stop_strings_and_limits(engine, janus, alone):
    text, _ = alone("greedy")
    stop = text[4:6]
    request = ChatRequest(messages=user("Hello"), max_new_tokens=30, stop=[stop])
    completion = engine.submit(request).result(TIMEOUT)
    assert completion.text == text[: text.index(stop)] == run_alone(janus, request)[0]
    assert completion.finished.reason == "stop"
    limited = engine.submit(REQUESTS["greedy"]).result(TIMEOUT).finished
    assert (limited.reason, limited.usage.completion_tokens) == ("length", 30)


@pytest.mark.slow
def test_images_of_a_prompt_share_their_prompt(engine):
    before = engine.stats().prefilled
    completion = engine.submit(GenerateRequest(prompt="A boat", n=5)).result(TIMEOUT)
    assert len(completion.images) == 5
    assert engine.stats().prefilled == before + 2


def test_equal_system_prompts_are_computed_once(engine, alone):
    def ask(name, **changes):
        completion = engine.submit(dataclasses.replace(REQUESTS[name], **changes)).result(TIMEOUT)
        return completion, completion.finished.usage.cached_tokens

    names = ("system prompt", "same system prompt")
    for _ in range(2):
        handles = {name: engine.submit(REQUESTS[name]) for name in names}
        for name, handle in handles.items():
            assert_equal(handle.result(TIMEOUT), alone(name))
    before = idle_stats(engine).cached_tokens
    for name in names:
        completion, cached = ask(name)
        usage = completion.finished.usage
        assert usage.prompt_tokens / 2 <= cached <= len(tiny.processor().tokenizer.encode(SYSTEM))
        assert_equal(completion, alone(name))
        before += cached
    assert idle_stats(engine).cached_tokens == before
    # Four other system prompts, the last ones used, replace it.
    for number in range(4):
        assert ask("system prompt", system_prompt=f"{number} {SYSTEM}", max_new_tokens=1)[1] == 0
    assert ask("system prompt", system_prompt=f"0 {SYSTEM}", max_new_tokens=1)[1] > 0
    completion, cached = ask("system prompt")
    assert cached == 0
    assert_equal(completion, alone("system prompt"))
    assert ask("no system prompt")[1] == 0


@pytest.mark.nightly
def test_images_equal_those_of_a_call_with_several_prompts(engine, janus):
    expected = janus.generate(["A tree", "A lake"], 2, seed=7)[1][1]
    request = GenerateRequest(prompt="A lake", seed=7, prompt_index=1, first_number=1)
    assert_equal(engine.submit(request).result(TIMEOUT), ("", [expected]))


def test_partial_pictures(engine):
    events = list(engine.submit(GenerateRequest(prompt="A boat", n=2, partial_images=2)).events(TIMEOUT))
    for number in range(2):
        kinds = [type(event) for event in events if getattr(event, "number", None) == number]
        assert kinds == [PartialPicture, PartialPicture, Picture]
    progress = [event.progress for event in events if isinstance(event, PartialPicture)]
    assert all(0 < one < 1 for one in progress)
    tokens = 2 * tiny.CONFIG.num_gen_tokens
    assert events[-1] == Finished("stop", events[-1].usage)
    assert events[-1].usage.completion_tokens == tokens


def test_text_streams_in_pieces(engine, alone):
    events = list(engine.submit(REQUESTS["sampled"]).events(TIMEOUT))
    pieces = [event.text for event in events if isinstance(event, TextPiece)]
    assert len(pieces) > 2
    assert "".join(pieces) == alone("sampled")[0]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ChatRequest(messages=[]), "at least one message"),
        (ChatRequest(messages=user("Hello"), temperature=-1.0), "temperature"),
        (ChatRequest(messages=user("Hello"), seed=-1), "seed"),
        (ChatRequest(messages=user("Hello"), stop=[""]), "stop"),
        (ChatRequest(messages=user("Hello " * 400)), "no room for an answer"),
        (ChatRequest(messages=user("Look", b"no image")), "image"),
        (GenerateRequest(prompt="A boat", n=0), "n is 0"),
        (GenerateRequest(prompt="A boat", settings={"steps": 3}), "no setting steps"),
        (GenerateRequest(prompt="A boat " * 300), "maximum length is 384"),
        (EditRequest(images=[], instruction="Red"), "at least one source image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_requests_are_rejected_by_submit(engine, request_, message):
    with pytest.raises(JanusError, match=message):
        engine.submit(request_)


def test_a_request_whose_logits_are_nan_fails_alone(engine, alone, monkeypatch):
    damaged, encode = tiny.picture(99), device.encode_input_images
    pixels = tiny.processor().understanding_sequence(user("Look", damaged)).und_images[0]

    def encode_with_nan(model, params, images):
        return encode(model, params, images) * (np.nan if (images[0] == pixels).all() else 1)

    monkeypatch.setattr(device, "encode_input_images", encode_with_nan)
    bad = [engine.submit(ChatRequest(messages=user("Look", damaged), max_new_tokens=20)) for _ in range(3)]
    good = {name: engine.submit(REQUESTS[name]) for name in ("greedy", "picture", "image", "edit")}
    for handle in bad:
        with pytest.raises(JanusError, match="logits are NaN"):
            handle.result(TIMEOUT)
    for name, handle in good.items():
        assert_equal(handle.result(TIMEOUT), alone(name))
    # The rows of the failed requests serve further ones.
    for name, handle in [(name, engine.submit(REQUESTS[name])) for name in [*good, *good]]:
        assert_equal(handle.result(TIMEOUT), alone(name))


def test_a_prompt_that_fails_on_the_device_fails_alone(engine, alone, monkeypatch):
    prefill = device.prefill
    bad_tokens = tiny.processor().understanding_sequence(user("Fail"), system_prompt="").tokens

    def failing(model, params, prompts, lengths):
        if any(bool((row[: len(bad_tokens)] == bad_tokens).all()) for row in prompts.tokens):
            raise RuntimeError("out of memory")
        return prefill(model, params, prompts, lengths)

    monkeypatch.setattr(device, "prefill", failing)
    bad = engine.submit(ChatRequest(messages=user("Fail"), system_prompt=""))
    good = engine.submit(REQUESTS["no system prompt"])
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.result(TIMEOUT)
    assert_equal(good.result(TIMEOUT), alone("no system prompt"))


def test_a_decode_call_that_fails_ends_its_requests_and_the_engine_goes_on(engine, alone, monkeypatch):
    def failing(*args, **options):
        raise RuntimeError("device lost")

    with monkeypatch.context() as patch:
        patch.setattr(device, "decode", failing)
        (event,) = engine.submit(REQUESTS["greedy"]).events(TIMEOUT)
    assert isinstance(event, Failed)
    assert_equal(engine.submit(REQUESTS["greedy"]).result(TIMEOUT), alone("greedy"))


def test_a_receiver_that_fails_cancels_its_request_only(engine, alone):
    def failing(event):
        raise OSError("the client is gone")

    handle = engine.submit(ChatRequest(messages=user("Hello"), max_new_tokens=100, temperature=1.0), failing)
    assert_equal(engine.submit(REQUESTS["greedy"]).result(TIMEOUT), alone("greedy"))
    deadline = time.monotonic() + TIMEOUT
    while not handle.is_done and time.monotonic() < deadline:
        time.sleep(0.01)
    assert handle.last_event == Finished("cancelled", handle.last_event.usage)


@pytest.mark.slow
def test_weights_of_8_bits_give_the_answer_of_the_model_alone():
    execution = Execution(layers="unrolled", quantization="int8")
    params = load_params(tiny.leaves_of(tiny.stacked_params()), tiny.CONFIG, execution, None)
    model = Pretrained(tiny.CONFIG, params, tiny.processor(), make_model(tiny.CONFIG, execution))
    engine = Engine(model, EngineOptions(slots=3, max_length=384, buckets=(64, 256)))
    engine.start(warm_up=False)
    assert_equal(engine.submit(REQUESTS["greedy"]).result(TIMEOUT), run_alone(model, REQUESTS["greedy"]))
    engine.stop()


def test_calls_run_between_decode_calls_and_their_errors_reach_the_caller(engine):
    running = engine.submit(ChatRequest(messages=user("Hello"), max_new_tokens=30, temperature=1.0))
    assert engine.call(threading.current_thread).result(TIMEOUT).name == "engine"
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 // 0).result(TIMEOUT)
    running.result(TIMEOUT)


def test_full_queue_drain_and_stop(janus):
    engine = Engine(janus, EngineOptions(slots=3, rows=(3,), max_length=384, buckets=(64, 256), max_queue=4))
    with pytest.raises(EngineClosed):
        engine.submit(REQUESTS["greedy"])
    engine.start(warm_up=False)
    handles = [engine.submit(REQUESTS["images"]) for _ in range(4)]
    with pytest.raises(Overloaded):
        engine.submit(REQUESTS["greedy"])
    for handle in handles[2:]:
        handle.cancel()
    assert engine.drain(TIMEOUT)
    assert [handle.last_event.reason for handle in handles] == ["stop", "stop", "cancelled", "cancelled"]
    with pytest.raises(EngineClosed):
        engine.submit(REQUESTS["greedy"])
    stats = engine.stats()
    assert (stats.finished, stats.cancelled, stats.rejected, stats.rows_used) == (2, 2, 1, 0)
    engine.stop()


def test_stop_cancels_requests(janus):
    engine = Engine(janus, OPTIONS)
    engine.start(warm_up=False)
    handle = engine.submit(ChatRequest(messages=user("Hello"), max_new_tokens=100))
    engine.stop()
    assert handle.result(TIMEOUT).finished.reason == "cancelled"


@pytest.mark.nightly
def test_no_program_is_compiled_after_warm_up(janus):
    with Engine(janus, OPTIONS) as engine:
        programs = (
            device.prefill,
            device.keep_prefix,
            device.extend,
            device.insert,
            device.decode,
            device.resize,
        )
        sizes = [program._cache_size() for program in programs]
        for handle in [engine.submit(request) for request in REQUESTS.values()]:
            handle.result(TIMEOUT)
        assert [program._cache_size() for program in programs] == sizes


@pytest.mark.nightly
def test_mesh_equals_a_single_device(alone):
    model = tiny.pretrained(make_mesh(2, 2, 2, devices=jax.devices()[:8]))
    engine = Engine(model, EngineOptions(slots=8, rows=(4,), max_length=384, buckets=(64, 256)))
    engine.start(warm_up=False)
    handles = {name: engine.submit(request) for name, request in REQUESTS.items()}
    for name, handle in handles.items():
        assert_equal(handle.result(TIMEOUT), alone(name))
    engine.stop()


@pytest.mark.nightly
def test_flow_model_serves_images_and_text():
    model = tiny.pretrained(config=tiny.FLOW)
    engine = Engine(model, OPTIONS)
    engine.start(warm_up=False)
    requests = [
        GenerateRequest(prompt="A boat", n=2, seed=3, settings={"steps": 4}, partial_images=1),
        ChatRequest(messages=user("What is it?", tiny.picture(0)), max_new_tokens=20),
        GenerateRequest(prompt="A tree", settings={"steps": 3, "guidance_scale": 1.0}),
        ChatRequest(messages=user("Hello"), max_new_tokens=20, temperature=1.0),
    ]
    handles = [engine.submit(request) for request in requests]
    for request, handle in zip(requests, handles, strict=True):
        assert_equal(handle.result(TIMEOUT), run_alone(model, request))
    with pytest.raises(JanusError, match="cannot edit"):
        engine.submit(REQUESTS["edit"])
    engine.stop()
