"""Tests against real servers, and what they need."""
