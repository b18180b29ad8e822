-- Tokens that open one deployment for predictions and nothing else.

ALTER TABLE tokens ADD COLUMN deployment TEXT NOT NULL DEFAULT '';
