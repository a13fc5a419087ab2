"""The agent: observation encoders, action distributions, actor and critic."""
