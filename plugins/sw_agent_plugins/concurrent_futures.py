"""Not written yet."""

from sw_agent.plugin import Plugin

plugin = Plugin("concurrent-futures")
