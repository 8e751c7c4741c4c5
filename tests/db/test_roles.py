"""What each database role may do with each table: every verb is tried, against one table of what is expected.

A letter is a verb that works: Select, Insert, Update, Delete, Truncate; in lower case where it works on some columns
only. A new table has to be added here, so that somebody thinks of who needs it.
"""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors, sql

from fedstac import bootstrap
from fedstac.bootstrap import Node
from fedstac.db import audit, feed, invariants, migrations, schema
from fedstac.demo import embedded, sample
from fedstac.workers import sequencer
from tests.db import writing

ROLES = ("writer", "sequencer", "reader", "auditor", "deleter")
EXPECTED = {
    #                             writer  sequencer  reader  auditor  deleter
    "fedstac.access_grant":      "SIU     -          S       -        -",
    "fedstac.alerted":           "SIUD    -          -       -        -",
    "fedstac.audit":             "SI      -          -       S        I",
    "fedstac.audit_chain":       "S       S          -       S        -",
    "fedstac.audit_head":        "S       S          -       S        -",
    "fedstac.awaited":           "SIUD    -          -       -        -",
    "fedstac.cascade":           "SIU     -          S       -        -",
    "fedstac.bulk":              "SIU     -          S       -        -",
    "fedstac.bulk_dataset":      "SIU     -          S       -        -",
    "fedstac.collection":        "SIUD    -          S       -        -",
    "fedstac.confirmation":      "SIUD    -          -       -        -",
    "fedstac.console_session":   "SIUD    -          -       -        -",
    "fedstac.consumer_cursor":   "SIUD    -          -       -        -",
    "fedstac.cursor":            "SIUD    -          -       -        -",
    "fedstac.dead_letter":       "SIUD    -          -       -        -",
    "fedstac.deletion":          "SIU     -          S       -        -",
    "fedstac.deletion_configuration":"SI      -          S       -        -",
    "fedstac.deletion_dependency":"SIUD     -          S       -        -",
    "fedstac.deletion_revision": "SIUD    -          S       -        -",
    "fedstac.deletion_waiver":   "SI      -          S       -        -",
    "fedstac.destination":       "SIUD    -          -       -        -",
    "fedstac.epoch":             "SIUD    SI         S       -        -",
    "fedstac.esgf_event":        "SID     -          -       -        -",
    "fedstac.esgf_waiting":      "SID     -          -       -        -",
    "fedstac.event_attempt":     "SIUD    -          -       -        -",
    "fedstac.facet":             "SIUD    su         S       -        -",
    "fedstac.facet_lost":        "SI      -          -       -        -",
    "fedstac.facet_removed":     "SU      su         S       -        -",
    "fedstac.facet_slot":        "SIUD    -          S       -        -",
    "fedstac.feed":              "SI      SI         S       -        -",
    "fedstac.feed_state":        "SIUD    SIU        s       s        -",
    "fedstac.file_mark":         "SID     -          -       -        -",
    "fedstac.file_reference":    "SIUD    -          -       -        -",
    "fedstac.footprint":         "SI      -          S       -        -",
    "fedstac.forgotten":         "S       S          S       -        -",
    "fedstac.grant_target":      "SIU     -          -       -        -",
    "fedstac.grant_turn":        "SIUD    -          S       -        -",
    "fedstac.idempotency":       "SID     SD         -       -        -",
    "fedstac.lapse":             "SIUD    -          -       -        -",
    "fedstac.lineage":           "SIU     -          S       -        -",
    "fedstac.load":              "SIUD    -          -       -        -",
    "fedstac.load_dataset":      "SIUD    -          -       -        -",
    "fedstac.load_part":         "SIUD    -          -       -        -",
    "fedstac.migration":         "S       S          -       -        -",
    "fedstac.node_exception":    "SIUD    -          -       -        -",
    "fedstac.node_status":       "SIUD    -          S       -        -",
    "fedstac.notification":      "SIUD    -          -       -        -",
    "fedstac.outbox":            "SIu     Su         S       -        -",
    "fedstac.own_group":         "SIUD    -          -       -        -",
    "fedstac.own_group_person":  "SIUD    -          -       -        -",
    "fedstac.parked":            "SIUD    -          -       -        -",
    "fedstac.own_report": "SIUD - S - -",
    "fedstac.parked_event":      "SIUD    -          -       -        -",
    "fedstac.part":              "SIUD    SIUD       -       -        -",
    "fedstac.person":            "SIU     -          -       -        sD",
    "fedstac.quarantine_case":   "SIU     -          S       -        -",
    "fedstac.record":            "SIUD    -          S       -        -",
    "fedstac.redaction":         "SIU     -          -       -        -",
    "fedstac.replica_alarm":     "SIUD    -          S       -        -",
    "fedstac.replica_announcement":"SIUD    -          S       -        -",
    "fedstac.replica_claim":     "SIUD    -          S       -        -",
    "fedstac.replica_dataset":   "SIUD    -          S       -        -",
    "fedstac.replica_disk":      "SIUD    -          S       -        -",
    "fedstac.replica_file":      "SIUD    -          S       -        -",
    "fedstac.replica_finding":   "SIUD    -          S       -        -",
    "fedstac.replica_host":      "SIUD    -          S       -        -",
    "fedstac.replica_leftover":  "SIUD    -          S       -        -",
    "fedstac.replica_look":      "SIUD    -          S       -        -",
    "fedstac.replica_mark":      "SIUD    -          S       -        -",
    "fedstac.replica_removal":   "SIUD    -          S       -        -",
    "fedstac.replica_source":    "SIUD    -          S       -        -",
    "fedstac.replica_source_fault":"SIUD    -          S       -        -",
    "fedstac.request":           "SIUD    -          -       -        -",
    "fedstac.request_item":      "SIUD    -          -       -        -",
    "fedstac.shard":             "SIUD    -          -       -        -",
    "fedstac.sink":              "SIUD    su         s       -        -",
    "fedstac.sink_resend":       "SIUD    -          -       -        -",
    "fedstac.subscription":      "SIUD    -          s       -        -",
    "fedstac.subscription_event":"SIUD    -          -       -        -",
    "fedstac.status_topic":      "SIU     -          S       -        -",
    "fedstac.tally":             "SIUD    SID        S       -        -",
    "fedstac.term":              "SI      -          S       -        -",
    "fedstac.term_state":        "S       -          -       -        -",
    "fedstac.token":             "SIUD    -          -       -        -",
    "fedstac.told":              "SU      -          -       -        -",
    "fedstac.trouble":           "SIUD    I          -       -        -",
    "fedstac.vocabulary":        "SI      S          S       -        -",
    "pgstac.items":              "SIUDT   -          S       -        -",
    "pgstac.collections":        "SIUDT   -          S       -        -",
}  # fmt: skip


def tables(conn: psycopg.Connection) -> dict[str, list[str]]:
    """Return the tables of the schema with their columns; partitions are those of the table they belong to."""
    rows = conn.execute(
        """SELECT 'fedstac.' || c.relname, array_agg(a.attname::text ORDER BY a.attnum)
           FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           WHERE c.relnamespace = 'fedstac'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
             AND c.relname !~ '^outbox_[0-9]' GROUP BY c.oid, c.relname ORDER BY 1"""
    ).fetchall()
    return dict([*rows, ("pgstac.items", ["id", "collection"]), ("pgstac.collections", ["id"])])


def may(conn: psycopg.Connection, statement: str) -> bool:
    """Try a statement and take it back. Other faults of it come after the question of permission."""
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(statement.encode())
    except errors.InsufficientPrivilege:
        return False
    except psycopg.Error:
        pass
    return True


def by_column(conn: psycopg.Connection, letter: str, statements: list[str]) -> str:
    allowed = [may(conn, statement) for statement in statements]
    return letter if all(allowed) else letter.lower() if any(allowed) else ""


def rights(conn: psycopg.Connection, table: str, columns: list[str]) -> str:
    return (
        by_column(conn, "S", [f'SELECT "{column}" FROM {table} LIMIT 0' for column in columns])
        + by_column(conn, "I", [f'INSERT INTO {table} ("{column}") VALUES (DEFAULT)' for column in columns])
        + by_column(conn, "U", [f'UPDATE {table} SET "{column}" = DEFAULT WHERE false' for column in columns])
        + ("D" if may(conn, f"DELETE FROM {table} WHERE false") else "")
        + ("T" if may(conn, f"TRUNCATE {table}") else "")
    )


@pytest.fixture
def database(dsn: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])


def test_every_role_may_do_with_every_table_what_it_needs_and_no_more(cluster: embedded.Cluster, database: str) -> None:
    with psycopg.connect(cluster.dsn(database)) as conn:
        every = tables(conn)
    found = {table: [""] * len(ROLES) for table in every}
    for n, role in enumerate(ROLES):
        with psycopg.connect(cluster.dsn(database, user=f"fedstac_{role}"), autocommit=True) as conn:
            conn.execute("SET search_path = pgstac, public")
            for table, columns in every.items():
                found[table][n] = rights(conn, table, columns)
    shown = {table: " ".join(each or "-" for each in row) for table, row in found.items()}
    print("\n".join(f'    "{table}": "{row}",' for table, row in shown.items()))
    assert shown == {table: " ".join(row.split()) for table, row in EXPECTED.items()}


FUNCTIONS = {
    "fedstac.chain_audit(boolean)": {"writer", "sequencer"},
    "fedstac.extend_outbox(integer, bigint)": {"writer", "sequencer"},
    "fedstac.widen_partitions()": {"writer"},
    "fedstac.tune_partition(text)": {"writer"},
    "fedstac.forget_outbox(bigint, bigint)": {"writer"},
    "fedstac.sweep_feed(integer)": {"writer"},
    "fedstac.drop_outbox(bigint, bigint)": {"writer"},
    "fedstac.redact_events(text[], text[])": {"writer"},
    "fedstac.redact_waivers(uuid[])": {"writer"},
    "fedstac.close_person(text, text, boolean)": {"deleter"},
    "fedstac.remove_terms()": {"writer", "sequencer"},
    "fedstac.follow_record()": set(),  # a trigger
    "fedstac.forget_destinations()": set(),  # a trigger
    "fedstac.end_subscriptions()": set(),  # a trigger
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_runs_with_the_owners_rights_is_for_few(cluster: embedded.Cluster, database: str, function: str) -> None:
    with psycopg.connect(cluster.dsn(database)) as conn:
        allowed = {
            role
            for role in ROLES
            if conn.execute(
                "SELECT has_function_privilege(%s, %s, 'EXECUTE')", (f"fedstac_{role}", function)
            ).fetchone()
            == (True,)
        }
    assert allowed == FUNCTIONS[function]


def test_no_other_function_runs_with_the_owners_rights(cluster: embedded.Cluster, database: str) -> None:
    with psycopg.connect(cluster.dsn(database)) as conn:
        rows = conn.execute(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE prosecdef AND pronamespace = 'fedstac'::regnamespace"
        ).fetchall()
    assert {name for (name,) in rows} == {function.replace(", ", ",") for function in FUNCTIONS}


async def test_the_sequencer_does_its_work_with_its_own_role(
    cluster: embedded.Cluster, west: Node, database: str
) -> None:
    async with west.pool.acquire() as conn:
        await writing.publish(conn, *sample.items(3, versions=1))
    own = west.settings.model_copy(update={"dsn": cluster.dsn(database, user="fedstac_sequencer")})
    async with bootstrap.node(own) as node, node.pool.acquire() as conn:
        assert await feed.lead(conn)
        assert await feed.sequence(conn) == 5
        assert await audit.chain(conn) == 5
        await sequencer._keep_house(conn)
        await conn.execute("UPDATE fedstac.feed_state SET system_id = 'another'")
        assert await feed.fork_if_restored(conn) is not None
    async with west.pool.acquire() as conn:
        await writing.publish(conn, *sample.items(2, seed=3, versions=1))
        assert await audit.chain(conn) == 2
        assert await invariants.check(conn) == []


def test_a_database_with_owner_and_writer_only_is_told_what_to_run(cluster: embedded.Cluster, database: str) -> None:
    """Roles are the whole cluster's: within one transaction one of them is gone."""
    with psycopg.connect(cluster.dsn(database)) as conn:
        conn.execute(sql.SQL("ALTER ROLE fedstac_auditor RENAME TO fedstac_somebody"))
        with pytest.raises(migrations.MigrationRefused, match=r"lacks the role fedstac_auditor; .*--print-setup"):
            migrations._check_setup(conn)
        conn.execute(migrations.SETUP.encode())
        migrations._check_setup(conn)
        conn.rollback()


def test_readiness_asks_for_every_right_of_the_writer() -> None:
    writers = {table: "".join(c for c in row.split()[0].upper() if c in "SIUD") for table, row in EXPECTED.items()}
    assert writers == schema.NEEDED
