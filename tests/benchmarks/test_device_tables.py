"""Tables of the results of device.sh."""

from benchmarks.device_tables import estimates, tables

STEP = {"ms": 500.0, "tokens_per_second": 65536.0, "peak_gib": 11.0, "compile_s": 30.0, "mfu": 0.39, "used_gib": 12.0}
MACHINE = {"device": "NVIDIA H200", "versions": {"jax": "0.11.0"}, "state": "done"}


def test_training_steps_are_next_to_the_estimates_of_the_same_batch():
    part = {"part": "train_janus_pro_1b_1", "model": "janus_pro_1b", "rows": 8, "length": 4096, **MACHINE}
    part |= {f"stage_1_equal_{name}": value for name, value in STEP.items()}
    estimate = estimates()["NVIDIA H200", "janus_pro_1b", 1, 8, 4096]
    row = next(line for line in tables([part]).splitlines() if line.startswith("| janus_pro_1b"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    measured = ["500", "0.39", "65,536", "12.00", "11.0", "30"]
    assert cells[:3] == ["janus_pro_1b", "1", "8 x 4096"]
    assert [cell for cell in cells[3:] if cell in measured] == measured
    assert {estimate["ms"], estimate["mfu"], estimate["gib"]} == set(cells[3:]) - set(measured)


def test_another_batch_has_no_estimate():
    part = {
        "part": "train",
        "model": "janus_pro_1b",
        "rows": 2,
        "length": 4096,
        **MACHINE,
        "state": "stopped after 2 s",
    }
    part |= {f"stage_1_equal_{name}": value for name, value in STEP.items()}
    content = tables([part])
    assert "| 500 |  | 0.39 |  |" in content
    assert content.endswith("Incomplete parts: `train` (stopped after 2 s).")
