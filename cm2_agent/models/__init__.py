"""The policy's chat models: local ones with token ids and logprobs, and OpenAI-compatible endpoints."""
