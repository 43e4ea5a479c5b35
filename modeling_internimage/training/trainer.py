# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""A `Trainer` with the authors' recipe, and with runs that can be interrupted at any time."""

import contextlib
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from .augmentation import MixupCutmix, SeededImages
from .checkpoints import (
    AVERAGED_WEIGHTS_FOLDER,
    CheckpointFolder,
    check_same_architecture,
    find_checkpoint,
    has_state,
    last_complete_checkpoint,
    name_of_not_finite,
    nested_tensors,
)
from .ema import WeightAverage
from .folder_lock import FolderLock
from .optimization import create_cosine_schedule, create_parameter_groups, create_step_schedule
from .recipe import GROUP_FIELDS, Recipe
from .sigterm import SigtermGuard, leave_sigterm_to_parent


logger = logging.get_logger(__name__)


class _Published(str):
    """A string that is pickled as another one, or as `None`: for files that are uploaded or passed on."""

    published: str | None

    def __new__(cls, value: str, published: str | None):
        string = super().__new__(cls, value)
        string.published = published
        return string

    def __reduce__(self):
        return (type(None), ()) if self.published is None else (str, (self.published,))

    def __deepcopy__(self, memo):
        return self


class _SetEpoch(TrainerCallback):
    """Accelerate tells the samplers the epoch, and the dataset only if there is no sampler: this one always does."""

    def __init__(self, epoch: torch.Tensor):
        self.epoch = epoch

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epoch.fill_(int(state.epoch + 1e-6))


class _UpdateAverage(TrainerCallback):
    def __init__(self, trainer: "InternImageTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.start_average(self.trainer.resumed_from)

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.average.update()

    def on_train_end(self, args, state, control, **kwargs):
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.trainer.start_average(state.best_model_checkpoint)


class _SaveAndStop(TrainerCallback):
    """After SIGTERM: completes the current step, saves a checkpoint and ends the process."""

    def __init__(self, trainer: "InternImageTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        leave_sigterm_to_parent(train_dataloader)

    def on_step_end(self, args, state, control, **kwargs):
        # At the end of an epoch, the checkpoint comes after the evaluation.
        if self.trainer.is_stopping and state.epoch != int(state.epoch):
            control.should_save = control.should_log = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer.is_stopping:
            control.should_save = control.should_log = True

    def on_evaluate(self, args, state, control, **kwargs):
        if self.trainer.agree_to_stop():
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        self.trainer.unfinished_checkpoint = None
        if self.trainer.agree_to_stop():
            logger.warning(
                f"SIGTERM: the checkpoint of step {state.global_step} in {args.output_dir} is complete. The same "
                "command resumes from it."
            )
            self.trainer.callback_handler.on_train_end(args, state, control)  # closes logs
            raise SystemExit(SigtermGuard.STATUS)


class InternImageTrainer(Trainer):
    """
    A `Trainer` for image classifiers, segmentation models and detectors with the authors' recipe. The loss is the
    model's own or that of `compute_loss_func`. Mixup, cutmix and label smoothing (`label_smoothing_factor`, here in
    training only) use cross-entropy instead and are for classifiers with one label per image.

    With `ema_decay`, evaluation and `save_model` use the averaged weights. Checkpoints hold the current weights and,
    as a model in the folder `ema`, the averaged ones.

    - A resumed run gives exactly the numbers of an uninterrupted one. Only the random augmentation of a streamed
      dataset (`IterableDataset`) differs.
    - If the loss of one process is NaN or Inf, training ends in all of them, and weights with NaN or Inf are not
      saved (`FloatingPointError`).
    - Two runs cannot write to one `output_dir` (`RuntimeError`).
    - On SIGTERM, `train` saves a checkpoint of the current step and ends the process with the status 143; a second
      SIGTERM ends it at once.
    - `resume_from_checkpoint=True` skips damaged checkpoints with a warning.
    - No file of the run contains `hub_token` or the path of `output_dir`, only the name of its last folder.

    Args:
        recipe ([`Recipe`], *optional*):
            Without one, training is that of `Trainer`.
    """

    loss_is_scaled_for_ga = False  # the loss is the mean of a batch, which the Trainer divides

    def __init__(self, *args, recipe: Recipe | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.recipe = recipe or Recipe()
        if self.compute_loss_func is not None:
            self.loss_is_scaled_for_ga = None  # the Trainer's own rule
        elif self.recipe.mixup or self.recipe.cutmix or self.label_smoother is not None:
            problem_type = getattr(self.model.config, "problem_type", None)
            if problem_type not in (None, "single_label_classification"):
                raise ValueError(
                    "`mixup`, `cutmix` and `label_smoothing_factor` are for one class per image, the model has "
                    f"`problem_type={problem_type!r}`: leave them out, or give a `compute_loss_func`."
                )
            self.compute_loss_func = self._classification_loss
        self.average: WeightAverage | None = None
        self.resumed_from: str | None = None
        self.unfinished_checkpoint: str | None = None
        self._recipe_scheduler = None
        self._has_agreed_to_stop = False
        self._lock = FolderLock(self.args.output_dir)
        self._sigterm = SigtermGuard()
        if self.args.hub_token is not None:
            self.args.hub_token = _Published(self.args.hub_token, None)
        self.args.output_dir = _Published(self.args.output_dir, Path(self.args.output_dir).resolve().name)
        self.add_callback(_SaveAndStop(self))
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.add_callback(_SetEpoch(self._epoch))
        if self.recipe.ema_decay is not None:
            self.add_callback(_UpdateAverage(self))

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            optimizer_class, arguments = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, self.model
            )
            is_class = isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)
            if not is_class or arguments.keys() & {"params", "model", "optimizer_dict"}:
                changed = [name for name in GROUP_FIELDS if getattr(self.recipe, name) != getattr(Recipe, name)]
                if changed:
                    raise ValueError(
                        f"`optim={self.args.optim}` chooses its parameters itself: leave out "
                        f"{' and '.join(f'`{name}`' for name in changed)}, or choose another optimizer."
                    )
                return super().create_optimizer(model)
            groups = create_parameter_groups(
                self.model if model is None else model,
                learning_rate=arguments.get("lr", self.args.learning_rate),
                weight_decay=self.args.weight_decay,
                layer_counting=self.recipe.layer_counting,
                **{name: getattr(self.recipe, name) for name in GROUP_FIELDS},
            )
            self.optimizer = optimizer_class(groups, **arguments)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        """The schedule of the recipe's `lr_milestones` or `lr_cosine`, otherwise that of the Trainer."""
        recipe = self.recipe
        is_given = self.lr_scheduler is not None and self.lr_scheduler is not self._recipe_scheduler
        if is_given or (recipe.lr_milestones is None and recipe.lr_cosine is None):
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = self.optimizer if optimizer is None else optimizer
        num_warmup_steps = self.args.get_warmup_steps(num_training_steps)
        if recipe.lr_milestones is not None:
            milestones = [round(milestone * num_training_steps) for milestone in recipe.lr_milestones]
            schedule = create_step_schedule(optimizer, num_warmup_steps, milestones)
        else:
            warmup_lr, min_lr = (factor * self.args.learning_rate for factor in recipe.lr_cosine)
            schedule = create_cosine_schedule(optimizer, num_warmup_steps, num_training_steps, min_lr, warmup_lr)
        self.lr_scheduler = self._recipe_scheduler = schedule  # a second `train` starts a new one
        return schedule

    def get_train_dataloader(self):
        dataset, collate = self.train_dataset, self.data_collator
        if self.recipe.mixup or self.recipe.cutmix:
            num_labels = self.model.config.num_labels
            self.data_collator = MixupCutmix(collate, num_labels, self.recipe.mixup, self.recipe.cutmix)
        if dataset is not None and not isinstance(dataset, torch.utils.data.IterableDataset):
            self.train_dataset = SeededImages(dataset, self.args.seed, self._epoch)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = dataset, collate

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The Trainer's. Without a `compute_loss_func` of the user, the loss is the mean of the batch."""
        if self.loss_is_scaled_for_ga is False:  # with this argument, some models return a sum
            num_items_in_batch = None
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _classification_loss(self, outputs, labels, num_items_in_batch=None):
        """Cross-entropy with class indices or, after mixup and cutmix, probabilities; smoothed in training only."""
        if outputs.logits.ndim != 2:
            raise ValueError(
                "`mixup`, `cutmix` and `label_smoothing_factor` are for image classifiers, the logits of "
                f"`{type(self.model).__name__}` have the shape {tuple(outputs.logits.shape)}: leave them out."
            )
        smoothing = self.args.label_smoothing_factor if self.model.training else 0.0
        return nn.functional.cross_entropy(outputs.logits.float(), labels, label_smoothing=smoothing)

    def get_batch_samples(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # a Trainer that resumes a finished run makes one more step
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        # Summed over all processes: if one of them stopped alone, the others would wait for it forever.
        both = torch.stack((loss, loss.new_full((), float(self._sigterm.received))))
        loss_of_all, signals = self.accelerator.reduce(both, "sum").tolist()
        self._has_agreed_to_stop = self._has_agreed_to_stop or signals > 0
        if not math.isfinite(loss_of_all):
            raise FloatingPointError(
                f"The loss at step {self.state.global_step + 1} is {loss_of_all}; {self._last_good_checkpoint()}. "
                "Lower the learning rate, or look at the images and labels of that step."
            )
        return loss

    @property
    def is_stopping(self) -> bool:
        """Whether a process has received SIGTERM during `train`. The answer is the same in all processes."""
        return self._has_agreed_to_stop or (self.args.world_size == 1 and self._sigterm.received)

    def agree_to_stop(self) -> bool:
        """`is_stopping` after the processes have exchanged their signals: to be called in all of them."""
        if self._sigterm.is_active and not self.is_stopping and self.args.world_size > 1:
            received = torch.tensor(float(self._sigterm.received), device=self.args.device)
            self._has_agreed_to_stop = self.accelerator.reduce(received, "sum").item() > 0
        return self.is_stopping

    def _last_good_checkpoint(self) -> str:
        return f"the last good checkpoint is {last_complete_checkpoint(self.args.output_dir)}"

    def _by_main_process(self, function: Callable):
        """Call `function` in the main process; return or raise its result in all processes."""
        answer: list = [None, None]
        if self.is_world_process_zero():
            try:
                answer[0] = function()
            except (OSError, RuntimeError, ValueError) as error:
                answer[1] = error
        result, error = broadcast_object_list(answer)
        if error is not None:
            raise error
        return result

    @contextlib.contextmanager
    def locked_output(self):
        """
        Inside the `with` block, which can be nested, no other run can write to `args.output_dir`.

        Raises:
            RuntimeError: If another run is writing to it.
            OSError: If it cannot be written.
        """
        with contextlib.ExitStack() as stack:
            self._by_main_process(lambda: stack.enter_context(self._lock))
            yield

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        asked = resume_from_checkpoint
        with self.locked_output(), self._sigterm:
            resume_from_checkpoint = self._by_main_process(lambda: self._checkpoint_to_resume(asked))
            self.resumed_from = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
            self._has_agreed_to_stop = False
            try:
                return super().train(resume_from_checkpoint, *args, **kwargs)
            except (OSError, RuntimeError, SafetensorError) as error:
                folder, self.unfinished_checkpoint = self.unfinished_checkpoint, None
                if folder is None or has_state(folder):
                    raise
                if self.is_world_process_zero():
                    shutil.rmtree(folder, ignore_errors=True)
                raise self._not_written(folder, error) from error

    def _not_written(self, folder: str, error: Exception) -> OSError:
        return OSError(
            f"{folder} could not be written ({error}); {self._last_good_checkpoint()}. Make space, and run the same "
            "again: it resumes from there."
        )

    def _checkpoint_to_resume(self, asked: str | os.PathLike | bool | None) -> str | bool | None:
        """The folder, prepared for the Trainer. `True` if there is no checkpoint, so that the Trainer reports it."""
        if not asked:
            return None
        if asked is True:
            checkpoint = find_checkpoint(self.args.output_dir)
            if checkpoint is None:  # warnings have named the damaged ones
                return True if get_last_checkpoint(self.args.output_dir) is None else None
        else:
            checkpoint = CheckpointFolder.examine(asked)
        checkpoint.prepare()
        check_same_architecture(self._unwrapped_model(), checkpoint.path)
        return str(checkpoint.path)

    def _unwrapped_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def start_average(self, checkpoint: str | None):
        """Start from the average in `checkpoint` or, without one, from the model's weights, which may be sharded."""
        self.average = WeightAverage(self._unwrapped_model(), self.recipe.ema_decay)
        if checkpoint is not None:
            folder = os.path.join(checkpoint, AVERAGED_WEIGHTS_FOLDER)
            if os.path.isfile(os.path.join(folder, SAFE_WEIGHTS_NAME)):
                self.average.load(folder)
            else:
                logger.warning(f"{checkpoint} has no averaged weights: the average starts anew from its weights.")

    def _averaged(self):
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def evaluation_loop(self, dataloader, *args, **kwargs):
        if self._sigterm.is_active:
            leave_sigterm_to_parent(dataloader)
        with self._averaged():
            return super().evaluation_loop(dataloader, *args, **kwargs)

    def save_model(self, output_dir=None, *args, **kwargs):
        """
        Save the averaged weights if there are any, otherwise the model's. For the Trainer's checkpoints, save the
        model's, and the averaged ones in the folder `ema` of the checkpoint.

        Raises:
            FloatingPointError: If weights have NaN or Inf.
            OSError: If the files cannot be written.
        """
        is_in_train = self._sigterm.is_active
        name_of_checkpoint = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if is_in_train and output_dir is not None and Path(output_dir).name == name_of_checkpoint:
            return self._save_checkpoint_model(output_dir, *args, **kwargs)
        self._check_finite(is_checkpoint=False)
        with self._sigterm:
            try:
                with self._averaged():
                    super().save_model(output_dir, *args, **kwargs)
            except (OSError, SafetensorError) as error:
                raise self._not_written(output_dir or self.args.output_dir, error) from error

    def _save_checkpoint_model(self, output_dir: str, *args, **kwargs):
        if self.args.should_save and os.path.isdir(output_dir):
            shutil.rmtree(output_dir)  # an older, damaged one, whose files must not be mixed with the new ones
        self._check_finite(is_checkpoint=True)
        self.unfinished_checkpoint = output_dir
        super().save_model(output_dir, *args, **kwargs)
        if self.average is not None:
            with self._averaged():
                super().save_model(os.path.join(output_dir, AVERAGED_WEIGHTS_FOLDER), *args, **kwargs)

    def _check_finite(self, is_checkpoint: bool):
        """Raise if the weights, their average or, for a checkpoint, the optimizer's state have NaN or Inf."""
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        if self.average is not None:
            tensors += [(f"the average of {name}", tensor) for name, tensor in self.average.average.items()]
        if is_checkpoint and self.optimizer is not None:
            tensors += nested_tensors(list(self.optimizer.state.values()), "the optimizer's state")
        name = name_of_not_finite(tensors)
        if is_checkpoint or self.is_fsdp_enabled:  # all processes are here, with different tensors
            found = torch.tensor(float(name is not None), device=self.args.device)
            if self.accelerator.reduce(found, "sum").item() > 0:
                name = name or "a tensor of another process"
        if name is not None:
            raise FloatingPointError(
                f"After step {self.state.global_step}, {name} has NaN or Inf, so it is not saved; "
                f"{self._last_good_checkpoint()}. Lower the learning rate, or look at the images and labels of the "
                "steps before."
            )

    def create_model_card(self, *args, **kwargs):
        # The card's table takes its columns from the first evaluation. Those before an interruption come from a file
        # with sorted keys, later ones do not.
        history = self.state.log_history
        self.state.log_history = [
            dict(sorted(entry.items(), key=lambda item: (item[0] != "eval_loss", item[0]))) for entry in history
        ]
        try:
            super().create_model_card(*args, **kwargs)
        finally:
            self.state.log_history = history

    def save_state(self):
        best = self.state.best_model_checkpoint
        self.state.best_model_checkpoint = best and Path(best).name  # this file is published
        try:
            super().save_state()
        finally:
            self.state.best_model_checkpoint = best
