"""Kai's configuration: kai.yaml, users.yaml, workspaces.yaml and services.yaml as typed values, or one clear error.

The parser is pure: it reads the files and nothing else of the host. `check_accounts` asks the host.
"""

from kai.config.accounts import check_accounts, home_of
from kai.config.config import Config, Source, check, host_timezone, load
from kai.config.kaiyaml import Agent, Kai, Model, Proxy, Telegram, Totp
from kai.config.rules import expand
from kai.config.services import Auth, Service
from kai.config.source import ConfigError
from kai.config.users import Limits, User
from kai.config.workspaces import Workspace

__all__ = [
    "Agent",
    "Auth",
    "Config",
    "ConfigError",
    "Kai",
    "Limits",
    "Model",
    "Proxy",
    "Service",
    "Source",
    "Telegram",
    "Totp",
    "User",
    "Workspace",
    "check",
    "check_accounts",
    "expand",
    "home_of",
    "host_timezone",
    "load",
]
