"""LoRA adapters of peft give the same logits here, and peft gives the same logits with adapters from here."""

import warnings

import jax
import numpy as np
import pytest

from checkpoints_convert import open_checkpoint
from checkpoints_convert.adapter import LowRank, open_adapter, write_adapter
from janus_jax.config import Execution
from janus_jax.models.factory import make_model
from janus_jax.pretrained import load_params
from tests.parity.test_conversion import CONFIG, transformers_model
from tests.parity.test_transformers_janus import batch

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

LLM = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
PROMPTS = np.random.default_rng(0).integers(20, CONFIG.llm.vocab_size, (2, 24))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft") / "Janus-Pro-small"
    transformers_model().save_pretrained(folder)
    return folder


def torch_logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(PROMPTS)).logits.numpy()


def jax_logits(checkpoint):
    execution = Execution(layers="unrolled")
    params = load_params(checkpoint.params("float32"), checkpoint.model_config, execution, None)
    model = make_model(checkpoint.model_config, execution)

    def logits(params, prompts):
        return model.apply({"params": params}, prompts, method=lambda model, batch: model.text_logits(model(batch)))

    return np.asarray(jax.jit(logits)(params, batch(PROMPTS.tolist())))


def adapted(**settings):
    """Returns a model of peft whose adapters change it."""
    config = peft.LoraConfig(target_modules=LLM, lora_alpha=16, **settings)
    model = peft.get_peft_model(transformers_model(), config).eval()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize(
    "settings",
    [{"r": 4}, {"r": 4, "use_rslora": True}, {"r": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 64}}],
    ids=["plain", "rslora", "patterns"],
)
def test_adapters_of_peft_give_its_logits(base, tmp_path, settings):
    model = adapted(**settings)
    model.save_pretrained(tmp_path / "adapter")
    expected = torch_logits(model)
    assert np.abs(expected - torch_logits(transformers_model().eval())).max() > 0.1
    actual = jax_logits(open_checkpoint(base, adapter=tmp_path / "adapter"))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_peft_loads_written_adapters(base, tmp_path):
    rng = np.random.default_rng(1)
    matrices = {}
    for parameter in open_checkpoint(base).parameters:
        if parameter.path in ("llm/layers/attn/q/weight", "llm/layers/attn/out/weight", "llm/layers/mlp/up/weight"):
            outputs = parameter.shape[0] * (parameter.shape[1] if parameter.path.endswith("q/weight") else 1)
            inputs = int(np.prod(parameter.shape)) // outputs
            for layer in range(CONFIG.llm.depth):
                a, b = rng.standard_normal((3, inputs), np.float32), rng.standard_normal((outputs, 3), np.float32)
                matrices[parameter.path, layer] = LowRank(a, 0.2 * b, 0.5)
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", matrices, str(base), "transformers")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*missing adapter keys.*")
        model = peft.PeftModel.from_pretrained(transformers_model(), tmp_path / "adapter").eval()
    expected = jax_logits(open_checkpoint(tmp_path / "adapter"))
    np.testing.assert_allclose(torch_logits(model), expected, rtol=1e-4, atol=1e-4)
    assert {name for name, _ in model.named_parameters() if "lora_" in name and "vision" in name} == set()
    # What peft saves again is the same adapter.
    model.save_pretrained(tmp_path / "again")
    assert open_adapter(tmp_path / "again").matrices.keys() == matrices.keys()
