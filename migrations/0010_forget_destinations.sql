-- Erasing somebody erases where they were told, which often is a mailbox; messages on their way go with it.
CREATE FUNCTION fedstac.forget_destinations() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM fedstac.destination WHERE owner = 'person:' || OLD.pseudonym;
    DELETE FROM fedstac.confirmation WHERE owner = 'person:' || OLD.pseudonym;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION fedstac.forget_destinations() FROM public;
CREATE TRIGGER person_forgotten AFTER DELETE ON fedstac.person
    FOR EACH ROW EXECUTE FUNCTION fedstac.forget_destinations();
