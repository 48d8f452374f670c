"""The operator's rules: from evidence to a disposition."""

from gateway.policy.load import SHIPPED, RuleError, RuleFault, load_rules, parse_rules
from gateway.policy.rules import Mode, Rule, RuleSet

__all__ = ["SHIPPED", "Mode", "Rule", "RuleError", "RuleFault", "RuleSet", "load_rules", "parse_rules"]
