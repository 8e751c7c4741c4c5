-- A look at few new rows must not read the whole log, whatever the planner thinks of tables that were small or never
-- analysed when the plan was made: by index only.
ALTER FUNCTION fedstac.chain_audit(boolean) SET enable_hashjoin = off;
ALTER FUNCTION fedstac.chain_audit(boolean) SET enable_mergejoin = off;
