-- What auth_query asks (docs/scram.md): a function that tells one role, and no other, the SCRAM verifier of a
-- user. Run it as a superuser in the database of auth_query's `dbname`, once a cluster; it can be run again:
--
--     psql -v role=pgtlsproxy_lookup -f auth_query.sql postgres
--
-- The role needs no other right. Give it a password, or a line with cert, in the server's pg_hba.conf:
--
--     hostssl postgres pgtlsproxy_lookup 10.0.0.5/32 scram-sha-256

\set ON_ERROR_STOP on
\if :{?role}
\else
\set role pgtlsproxy_lookup
\endif

BEGIN;

SELECT pg_catalog.format('CREATE ROLE %I LOGIN', :'role')
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = :'role') \gexec

-- Whoever is a member of the role may ask in its name, and in PostgreSQL 16 and newer whoever made it is one.
SET LOCAL pgtlsproxy.role = :'role';
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_catalog.pg_auth_members AS m
        JOIN pg_catalog.pg_roles AS asking ON asking.oid = m.roleid
        JOIN pg_catalog.pg_roles AS member ON member.oid = m.member
        WHERE asking.rolname = pg_catalog.current_setting('pgtlsproxy.role') AND NOT member.rolsuper
    ) THEN
        RAISE EXCEPTION 'the role that asks has members that are no superusers: take another one';
    END IF;
END
$$;

-- A question that has to wait is given up by the server too.
ALTER ROLE :"role" SET statement_timeout = '5s';

-- Whoever owns the schema, or a function in it, may exchange it, and so let in whom he likes.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_catalog.pg_namespace AS n
        LEFT JOIN pg_catalog.pg_proc AS p ON p.pronamespace = n.oid
        JOIN pg_catalog.pg_roles AS owner ON owner.oid IN (n.nspowner, p.proowner)
        WHERE n.nspname = 'pgtlsproxy' AND NOT owner.rolsuper AND owner.rolname <> current_user
    ) THEN
        RAISE EXCEPTION 'schema pgtlsproxy or a function in it belongs to a role that is no superuser: see whose, and drop it';
    END IF;
END
$$;
CREATE SCHEMA IF NOT EXISTS pgtlsproxy;
REVOKE ALL ON SCHEMA pgtlsproxy FROM PUBLIC;

-- Superusers and replication roles are left out: whoever controls the proxy would have their verifiers. To let
-- them in, take out the line that says so. Secrets that are not SCRAM's never leave the server.
CREATE OR REPLACE FUNCTION pgtlsproxy.auth_query(
    wanted name,
    OUT rolname name,
    OUT rolpassword text,
    OUT rolvaliduntil timestamptz
)
RETURNS SETOF record
LANGUAGE sql STABLE STRICT SECURITY DEFINER ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT
        a.rolname,
        CASE
            WHEN a.rolpassword LIKE 'SCRAM-SHA-256$%' AND octet_length(a.rolpassword) <= 1024
            THEN a.rolpassword
        END,
        a.rolvaliduntil
    FROM pg_catalog.pg_authid AS a
    WHERE a.rolname OPERATOR(pg_catalog.=) wanted
        AND a.rolcanlogin
        AND NOT a.rolsuper AND NOT a.rolreplication
$$;

REVOKE ALL ON FUNCTION pgtlsproxy.auth_query(name) FROM PUBLIC;
GRANT USAGE ON SCHEMA pgtlsproxy TO :"role";
GRANT EXECUTE ON FUNCTION pgtlsproxy.auth_query(name) TO :"role";

COMMIT;
