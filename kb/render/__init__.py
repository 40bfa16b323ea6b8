"""Answers as text for people, Markdown for issues and chats, JSON for programs. Rendering never decides anything."""
