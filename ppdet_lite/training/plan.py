"""The schedule of checkpoints and evaluations: the lengths of a config's `train:` section in iterations."""

from typing import NamedTuple

from ppdet_lite.config.checked_config import Config
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.optimization.duration import to_iterations


class Plan(NamedTuple):
    """The lengths of a run in iterations. None: an action happens only at the end."""

    total: int
    per_epoch: int
    checkpoint_every: int | None
    evaluate_every: int | None
    early_stop: int | None  # in evaluations; None: never

    def due(self, every: int | None, iteration: int) -> bool:
        """Return whether an action that happens every `every` iterations, and at the end, is due after this one."""
        return iteration == self.total or (every is not None and iteration % every == 0)


def make_plan(config: Config, per_epoch: int) -> Plan:
    """Compute the plan of a config. Warns about a warm-up, milestones or mimicking that the run is too short for.

    per_epoch: iterations in an epoch. Raises UserError for a length of zero iterations.
    """

    def iterations(key: str) -> int | None:
        duration = config["train"][key]
        if duration is None:
            return None
        count = to_iterations(duration, per_epoch)
        if count == 0:
            place = config.origin(f"train.{key}")
            raise UserError(f"{place}: train.{key}: must be at least one iteration, got {duration}")
        return count

    early_stop = config["train"]["early_stop"]
    if early_stop is not None and config["train"]["evaluate_every"] is None:
        place = config.origin("train.early_stop")
        raise UserError(f"{place}: train.early_stop: needs evaluations; set train.evaluate_every")
    if config["train"]["best_metric"] == "loss" and not config["eval"]["loss"]:
        place = config.origin("train.best_metric")
        raise UserError(f"{place}: train.best_metric: the loss is not computed; set eval.loss: true")
    lengths = (iterations(key) for key in ("checkpoint_every", "evaluate_every"))
    plan = Plan(iterations("length"), per_epoch, *lengths, early_stop)
    warmup = config["schedule"]["warmup_iterations"]
    if warmup >= plan.total:
        get_logger().warning("the warm-up of %d iterations is not over when training ends after %d", warmup, plan.total)
    elif 2 * warmup > plan.total:
        get_logger().warning("the warm-up of %d iterations takes most of the training of %d", warmup, plan.total)
    milestones = config["schedule"].get("milestones", [])
    if late := [milestone for milestone in milestones if to_iterations(milestone, per_epoch) >= plan.total]:
        get_logger().warning(
            f"{config.origin('schedule.milestones')}: schedule.milestones: the learning rate is not lowered at "
            f"{', '.join(late)}, since training ends after {config['train']['length']} (train.length)"
        )
    mimic = config["model"]["mimic"]
    if mimic is not None and mimic["start_iteration"] >= plan.total:
        get_logger().warning(
            f"mimicking never begins: model.mimic.start_iteration is {mimic['start_iteration']}, "
            f"training ends after {plan.total} iterations"
        )
    return plan
