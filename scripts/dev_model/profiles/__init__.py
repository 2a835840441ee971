"""How the servers that call themselves OpenAI-compatible really speak, one strategy each."""

from scripts.dev_model.profiles.azure import Azure
from scripts.dev_model.profiles.ollama import Ollama
from scripts.dev_model.profiles.openai import Chunk, OpenAI
from scripts.dev_model.profiles.vllm import Vllm

PROFILES: dict[str, OpenAI] = {profile.name: profile for profile in (OpenAI(), Azure(), Vllm(), Ollama())}

__all__ = ["PROFILES", "Chunk", "OpenAI"]
