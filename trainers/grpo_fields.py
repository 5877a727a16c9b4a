"""Every field of TRL's GRPOConfig: what becomes of it in `GRPO(args=…)`. The page docs/reference/grpo-fields.md is made
of these tables, and a test walks all fields of the TRL that is installed.

Nothing here needs torch. A field counts as given where it is in the dict of `args`, or differs from TRL's default in a
GRPOConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PASSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps"),
            "the schedule",
        ),
        **dict.fromkeys(
            ("optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
            "the optimizer",
        ),
        "max_grad_norm": "the optimizer",
        **dict.fromkeys(
            (
                *("loss_type", "num_iterations", "epsilon", "importance_sampling_level"),
                *("sapo_temperature_neg", "sapo_temperature_pos", "use_bias_correction_kl", "top_entropy_quantile"),
                *("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg", "router_aux_loss_coef"),
                *("entropy_coef", "use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max"),
                *("entropy_coef_delta", "entropy_target", "max_completion_length"),
            ),
            "the loss",
        ),
        **dict.fromkeys(
            (
                *("bf16", "fp16", "tf32", "cast_lm_head_to_fp32", "activation_checkpointing"),
                *("activation_checkpointing_kwargs", "gradient_checkpointing", "gradient_checkpointing_kwargs"),
                *("torch_empty_cache_steps", "use_cpu", "full_determinism", "skip_memory_metrics", "debug"),
            ),
            "precision, memory and device",
        ),
        **dict.fromkeys(
            (
                *("logging_steps", "logging_first_step", "log_on_each_node", "log_level", "log_level_replica"),
                *("disable_tqdm", "run_name", "project", "trackio_space_id", "trackio_bucket_id"),
                *("trackio_static_space_id", "num_completions_to_print", "log_unique_prompts"),
            ),
            "what is shown and logged",
        ),
        **dict.fromkeys(("save_steps", "save_on_each_node"), "checkpoints"),
        **dict.fromkeys(
            (
                *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
                *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
            ),
            "TRL's loader, which here counts steps alone",
        ),
    }
)
"""Fields that TRL's trainer gets as they are → what they are about."""

OURS: Mapping[str, str] = MappingProxyType(
    {
        "learning_rate": "the schedule's highest; 3e-6 unless given, and 3e-5 for an adapter",
        "output_dir": "where checkpoints, completions and trackers' files go; default: `out.run`, beside `out`",
        "num_train_epochs": "passes over the rollouts, exactly so many; the same as `epochs`, and not beside max_steps",
        "per_device_train_batch_size": "the most rows of one forward and backward pass; changes no loss",
        "gradient_accumulation_steps": "splits the rows of an optimizer step into so many parts, or more where"
        " per_device_train_batch_size or tokens_per_micro_batch ask for it; changes no loss",
        "steps_per_generation": "over gradient_accumulation_steps: how many optimizer steps share the rows of"
        " rollouts_per_step rollouts; default: one",
        "num_generations": "checked: the stored groups decide how many rollouts a group has",
        "temperature": "checked: it must be the temperature of the stored logprobs",
        "epsilon_high": "the clip above 1, 0.28 unless given; with loss_type='cispo' the bound of the ratio itself, 5.0"
        " unless given and at least 1",
        "beta": "a KL term towards the policy as given; no second model is loaded for it",
        "delta": "bounds the ratio; with importance_weighting='direct' it is max_weight unless given",
        "scale_rewards": "'group' is norm='std' (population standard deviation, + 1e-6), 'none' is norm='none'; 'batch'"
        " is refused, since advantages are a group's own",
        "mask_truncated_completions": "leaves out rollouts in which the token limit cut an answer, each counted with"
        " its reason; they still count in the mean of their group",
        "off_policy_mask_threshold": "compares the policy with the one that sampled, by the stored logprobs",
        "sync_ref_model": "the reference of the KL term follows the policy",
        "ref_model_mixup_alpha": "with sync_ref_model: the share of the policy in the new reference",
        "ref_model_sync_steps": "with sync_ref_model: every so many optimizer steps",
        "disable_dropout": "dropout is always off while ratios are taken",
        "seed": "of the order of the rollouts and of TRL; the same as `seed`",
        "report_to": "trackers get loss, entropy, clip share, KL and effective sample size; asking for one turns"
        " logging on, every step unless logging_steps is given",
        "logging_strategy": "'steps', 'no', or 'epoch', the end of each pass over the rollouts",
        "log_completions": "shows stored prompts and completions with rewards and advantages, and writes them to"
        " output_dir/completions; turns logging on",
        "save_strategy": "'steps', 'no', or 'epoch', the end of each pass over the rollouts; save_steps alone means"
        " 'steps'",
        "save_total_limit": "how many checkpoints stay; an old one goes when a newer one is whole",
        "resume_from_checkpoint": "a checkpoint of this very run, or False to begin anew; by default a run that was"
        " killed goes on from its newest checkpoint",
    }
)
"""Fields that CM2 gives a meaning of its own → which."""

_GENERATES = "nothing is generated while stored rollouts are trained on; set it where they are sampled"
_EVALUATES = "nothing is evaluated on the way; run held-out tasks with the new policy (cm2 run, cm2 report)"
_HUB = "the new policy is the folder `out`; upload that (`hf upload`)"
_ONE = "processes are `accelerate launch`'s to start, and rows are shared out among them by CM2"
_ORDER = "rows come in whole groups, in an order that `seed` decides"
_LABELS = "there are no labels: the loss is over the model's own tokens"
_WRAPPED = "it would change the model's forward pass under the recorded logprobs; load the model as you want it and"
_WRAPPED += " give it in memory"

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                *("top_p", "top_k", "min_p", "generation_kwargs", "chat_template_kwargs", "repetition_penalty"),
                *("cache_implementation", "generation_batch_size", "max_tool_calling_iterations", "use_vllm"),
                *("vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_structured_outputs_regex"),
                *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout"),
                *("vllm_group_port", "vllm_gpu_memory_utilization", "vllm_max_model_length"),
                *("vllm_tensor_parallel_size", "use_transformers_continuous_batching", "use_transformers_paged"),
                *("transformers_continuous_batching_config", "ds3_gather_for_generation", "log_multimodal"),
            ),
            _GENERATES,
        ),
        **dict.fromkeys(
            (
                *("vllm_importance_sampling_correction", "vllm_importance_sampling_mode"),
                *("vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"),
                "vllm_importance_sampling_cap",
            ),
            "the stored logprobs are the sampler's own; importance_weighting and max_weight correct for it",
        ),
        **dict.fromkeys(
            (
                *("eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size", "prediction_loss_only"),
                *("eval_on_start", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
                *("include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "do_eval"),
                *("do_predict", "num_generations_eval", "load_best_model_at_end", "metric_for_best_model"),
                "greater_is_better",
            ),
            _EVALUATES,
        ),
        **dict.fromkeys(
            (
                *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
                *("hub_revision", "log_completions_hub_repo"),
            ),
            _HUB,
        ),
        **dict.fromkeys(
            (
                *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
                *("ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "deepspeed", "parallelism_config", "local_rank"),
                *("accelerator_config", "average_tokens_across_devices"),
            ),
            _ONE,
        ),
        **dict.fromkeys(
            (
                *("shuffle_dataset", "data_seed", "train_sampling_strategy", "length_column_name"),
                *("dataloader_drop_last", "remove_unused_columns", "pad_to_multiple_of"),
            ),
            _ORDER,
        ),
        **dict.fromkeys(("label_smoothing_factor", "label_names"), _LABELS),
        **dict.fromkeys(
            (
                *("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel"),
                *("liger_kernel_config", "neftune_noise_alpha", "model_init_kwargs", "use_cache"),
            ),
            _WRAPPED,
        ),
        "auto_find_batch_size": "TRL's GRPO refuses it too; set per_device_train_batch_size",
        "trust_remote_code": "no code of a model's folder is ever run",
        "reward_weights": "rewards are stored; the weights are those of the checklist's items, or of a stack",
        "multi_objective_aggregation": "rewards are stored; a stack of rewards says how they are joined",
        "logging_nan_inf_filter": "a loss that is no number stops the run",
        "include_num_input_tokens_seen": "report.json counts the tokens",
        "save_only_model": "a checkpoint without its optimizer cannot be gone on from; `out` is the model alone",
        "enable_jit_checkpoint": "a checkpoint at a signal may be cut off; give save_steps, and run the command again",
        "ignore_data_skip": "a resumed run goes on with the rows that come next",
        "restore_callback_states_from_checkpoint": "the figures of the steps are always restored",
        "do_train": "train() trains",
    }
)
"""Fields that mean nothing here, or would do harm → why, and what to do. Each may be given with TRL's default."""
