-- What an operator has let a sink pass over by seeking ahead: an audit does not miss it, a log that is filled again lacks it.
ALTER TABLE fedstac.sink ADD COLUMN skipped int8multirange NOT NULL DEFAULT '{}';
