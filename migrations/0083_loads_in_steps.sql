-- What takes long of a full-state load is done in steps by a part of the workers, each step some of its datasets
-- (docs/services.md, "Over HTTP, and after an interruption").
ALTER TABLE fedstac.load
    ADD COLUMN step text CHECK (step IN ('stated', 'here', 'list', 'trim', 'empty')), -- null: nothing is to be done
    ADD COLUMN step_after text NOT NULL DEFAULT '',      -- datasets through this id are done, in the order of ids
    ADD COLUMN step_at timestamptz,                      -- when the last step ended: loads take turns
    ADD COLUMN comparison integer NOT NULL DEFAULT 0,    -- changes count that this comparison found; parts begin another
    ADD COLUMN comparing_since timestamptz,
    ADD COLUMN compared_stated integer NOT NULL DEFAULT 0, -- datasets so far: of those that are stated,
    ADD COLUMN compared_here integer NOT NULL DEFAULT 0, -- and of those that are here
    ADD COLUMN counts json,                              -- datasets by change
    ADD COLUMN examples json,                            -- the first ids by change
    ADD COLUMN done_at timestamptz;                      -- of one that was applied, and had nothing to do
ALTER TABLE fedstac.load_dataset ADD COLUMN comparison integer NOT NULL DEFAULT 0;
UPDATE fedstac.load l SET examples = '{}', counts = coalesce((
    SELECT json_object_agg(c.change, c.count)
    FROM (SELECT change, count(*) FROM fedstac.load_dataset WHERE load = l.id AND change IS NOT NULL GROUP BY change) c
), '{}') WHERE compared_at IS NOT NULL;
CREATE INDEX load_step ON fedstac.load (step_at NULLS FIRST) WHERE step IS NOT NULL;
CREATE INDEX load_submitter ON fedstac.load (submitter, created DESC, id DESC);
CREATE INDEX load_dataset_change ON fedstac.load_dataset (load, change, dataset);

-- A change of many datasets begins once its datasets are listed.
ALTER TABLE fedstac.bulk ADD COLUMN is_listed boolean NOT NULL DEFAULT true;
