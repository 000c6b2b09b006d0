"""The commented probe file that `atlas init` writes."""

from __future__ import annotations

TEMPLATE = """\
# A probe set: what is measured, on which documents, and under which budgets an audit passes.
# Edit it, then fix it before the run:   atlas register probes.yaml
# Every key is checked; an unknown or repeated key, an alias or a tag is an error with its line.
schema: atlas/probes/v1
name: my-gate

# How text becomes token ids: the model's own tokenizer.json, or bytes (UTF-8 bytes 0-255).
# Leave the line out when every source already holds token ids. No special tokens are added.
tokenizer: tokenizer.json
# special_tokens: bos           # the tokenizer's bos_token in front of every window
# chat_template: template.jinja # instead of the one beside the tokenizer file

# Each document gives per_document disjoint windows of this many tokens, at places drawn from the seed.
# A document that is too short is an error, never a padded window; shorter: skip in a domain leaves it out on record.
windows: {tokens: 512, per_document: 1, seed: 7}

# experts: active evaluates the experts that either checkpoint routes to and the first competitor; all is
# slower. token_stride: n takes every n-th token. quantile: what content drift reads off over the experts.
evaluation: {experts: active, token_stride: 1, quantile: 0.9}

# The layers whose atlas is guarded: all, mid-band (drops a quarter of the routed layers at each end), or
# the model's own 0-based numbers such as [3, 8-20].
protected_layers: mid-band

# Sources lie beside this file: .jsonl, .json (also .gz), .parquet or a saved datasets folder, with rows of text,
# tokens, prompt and completion, messages, conversations, or instruction and output (optional id names the document);
# .txt, a folder, a pattern such as "docs/**/*.md", or .safetensors (int64 tokens [documents, tokens]).
#   base    what the fine-tune must not damage. Under 36 documents nothing can pass; use 100 or more.
#   canary  a few documents, each guarded by itself: max_nll_increase in nats per token.
#   task    what was to be learnt, with a success rule; completions and assistant turns are scored.
domains:
  - {name: prose, role: base, source: prose.jsonl, documents: 120}
  - {name: code, role: base, source: code.jsonl, documents: 120}
  # - {name: canary, role: canary, source: canary.jsonl, max_nll_increase: 0.5}
  # - {name: sft, role: task, source: sft.jsonl, documents: 120, success: {metric: nll, at_most: 1.9}}
  #   metric: nll with at_most, or token_accuracy / exact_match with at_least;
  #   relative_to_base: true puts the limit on tuned minus base.

policy:
  # chart-preserving: the protected atlas must stay as it is.
  # knowledge-expansive: it may be rewritten where no chart-preserving attempt reached the task.
  stage: chart-preserving
  # Without a task domain say so; claims "at matched task success" then stay unlicensed.
  task: none
  confidence: 0.95
  resamples: 4000

  # Budgets of the protected atlas. null means: measured and reported, not gated.
  # They are null here because no number fits every model: drift depends on the family, on k and on the
  # evaluation set. Let healthy tunes set them: register and audit this file as it is for a few tunes you would
  # promote (other seeds of the recipe will do, three at least), then
  #   atlas calibrate --healthy FOLDER --damaged FOLDER --out policy.yaml
  # writes each budget as a prediction bound over them, and what it would have caught. Take this policy block
  # out and register under that file:   atlas register probes.yaml --policy-from policy.yaml
  rewrite:
    coordinate: null      # 0..2; turn of the canonical state, 1 - cos
    boundary: null        # 0..1; share of the routed set exchanged
    transition: null      # 0..0.693 nats; Jensen-Shannon divergence of the gate
    content: null         # 0..1; relative change of what the experts write
    # The worst expert, over the tokens that use it: 0.35 unless written, three times what sound tunes reach.
    expert_content: 0.35  # 0..1; null leaves single experts ungated
    overlap_drop: null    # fall of the co-active overlap
    dead_share_rise: null # rise of the share of experts that no token reaches
    entropy_drop: null    # fall of the load entropy, nats
    load_cv_rise: null    # rise of the load's coefficient of variation
    # refinement: {mu: [1, 1, 0.5], tau: 0.25}
    # handoff: {lambda: [1, 0.5]}
    # smooth: {adjacency: 10, occupancy: 30000, handoff: 50, refinement: 50}

  # Damage to base domains, nats per token. null never passes: the outcome stays undetermined.
  damage:
    nll: null             # margin of the mean increase of each base domain
    # kl: 0.1             # limit of the mean divergence of its predictions from the base's. Losses that fall pay for
    #                       losses that rise in nll, not here. Absent: twice nll, which can only withhold a pass;
    #                       null: not gated, and every report says so
    document_nll: null    # a document above this counts as damaged ...
    document_share: null  # ... and fewer than this share of documents may be

  # Tensor classes that must keep, or must not keep, their values: router, selection_bias, routed_expert,
  # shared_expert, dense_mlp, attention, norm, embedding, head, other.
  weights: {must_not_change: [], must_change: []}

  # What is allowed by name, nothing by default. identical: base and tuned may hold the same values.
  # unmeasured_experts: experts that too few probe tokens use may change unlike the others of their layer.
  # vocabulary_rows: rows of embedding and head may be permuted, far longer, or replaced in numbers.
  # mtp, modalities, activation_scales: tensors that no probe token passes (prediction layers; vision, audio; scales
  # of quantised activations) may be missing, added or replaced. tokenizer: the one beside the tuned checkpoint may
  # number the probe's text in another way.
  # frozen_layers: a class that must change may do so in some layers only.
  # config_keys: audits under a central policy may accept keys of config.json that nothing reads.
  # allow: [identical]

  # What the budgets were set for; an audit of another kind warns.
  # set_for: {family: deepseek_v3, top_k: 8, experts: active}
"""
