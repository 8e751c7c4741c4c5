-- Why a dataset was retracted, by what it is replaced, and what becomes of its bytes: JSON text, part of the digest.
ALTER TABLE fedstac.record ADD COLUMN retraction text;
