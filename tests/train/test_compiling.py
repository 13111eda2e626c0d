"""How large the step's program is: that is what compiling takes its time for."""

from dataclasses import replace

from janus_jax.config import Execution
from janus_jax.models.janus import Janus
from janus_jax.train.step import Cut, abstract_train_state, train_step
from tests import tiny
from tests.train import batches, stages


def lines(depth):
    """Of the text of stage III's step, before XLA compiles it, with so many layers in both transformers."""
    c = tiny.CONFIG
    config = replace(c, llm=replace(c.llm, depth=depth), und_encoder=replace(c.und_encoder, depth=depth))
    model = Janus(config, Execution(remat="full"))
    abstract = abstract_train_state(model, stages.TRAINED["III"], stages.OPTIMIZER, None)
    batch = batches.batch([(batches.understanding(1), batches.generation(2))])
    step = train_step(model, stages.OPTIMIZER, Cut(), abstract, None)
    return step.lower(abstract, batch).as_text().count("\n")


def test_the_program_does_not_grow_with_depth():
    assert lines(4) == lines(24) > 1000
