-- The roles and the database of Animus, for psql as a superuser, once per cluster:
--   psql -v ON_ERROR_STOP=1 -v secrets=/run/secrets -f roles.sql
--
-- animus_owner owns the database and its schema: only `animus migrate` connects as it. animus_service is what the
-- server connects as: it owns nothing, so that row security and grants hold for it. The embedded PostgreSQL is given
-- the same roles. Each password is read from a file of its own, so that none is in a command line or in this file.
\if :{?secrets}
\else
  \set secrets /run/secrets
\endif
\set owner_file :secrets '/animus_owner_password'
\set service_file :secrets '/animus_service_password'
\set owner_password `cat :owner_file`
\set service_password `cat :service_file`
-- A file that is not there reads as no text, and a role with no password would be made.
SELECT length(:'owner_password') >= 32 AND length(:'service_password') >= 32 AS given \gset
\if :given
\else
  DO $$ BEGIN RAISE EXCEPTION 'a password file is missing or has less than 32 characters'; END $$;
  \quit
\endif

CREATE ROLE animus_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
  PASSWORD :'owner_password';
CREATE ROLE animus_service LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
  PASSWORD :'service_password';
ALTER ROLE animus_service SET statement_timeout = '30s';
ALTER ROLE animus_service SET lock_timeout = '10s';
ALTER ROLE animus_service SET idle_in_transaction_session_timeout = '60s';
REVOKE ALL ON DATABASE postgres FROM PUBLIC;
REVOKE ALL ON DATABASE template1 FROM PUBLIC;
CREATE DATABASE animus OWNER animus_owner;
REVOKE ALL ON DATABASE animus FROM PUBLIC;
GRANT CONNECT ON DATABASE animus TO animus_service;
\connect animus
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
