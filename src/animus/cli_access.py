"""`animus access`: who one is, service accounts, tokens, role bindings, and break-glass. See docs/access-cli.md."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from animus.cli_client import (
    CONFLICT,
    DEFAULT_ADDRESS,
    USAGE,
    Address,
    AsJson,
    Insecure,
    Project,
    RequestId,
    TokenFile,
    channel_to,
    errors,
    every_item,
    fail,
    kept_receipts,
    message_tree,
    new_request_id,
    print_json,
    print_list,
    print_message,
    read_token,
    table,
)
from animus.domain.access import MAX_BREAK_GLASS_HOURS, MAX_RUN_TOKEN_DAYS, MAX_TOKEN_DAYS
from animus.domain.names import SYSTEM_PROJECT

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from animus.v1 import access_pb2_grpc

app = typer.Typer(help="Service accounts, tokens and role bindings.", no_args_is_help=True)
account_app = typer.Typer(help="Service accounts: what tokens are issued to.", no_args_is_help=True)
token_app = typer.Typer(help="Tokens of service accounts and of runs.", no_args_is_help=True)
binding_app = typer.Typer(help="Roles of those who come with another credential than a token.", no_args_is_help=True)
app.add_typer(account_app, name="account")
app.add_typer(token_app, name="token")
app.add_typer(binding_app, name="binding")

Account = Annotated[str, typer.Argument(help="Id of the service account.", metavar="ACCOUNT", show_default=False)]
Reason = Annotated[str, typer.Option(help="Why; it goes on the record.", show_default=False)]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="New file for the token, readable by you alone.", show_default=False),
]
Print = Annotated[bool, typer.Option("--print", help="Print the token to stdout; no file is written.")]
Filter = Annotated[
    str, typer.Option("--filter", help="Only what meets this condition, as docs/lists.md has it.", show_default=False)
]
OrderBy = Annotated[
    str, typer.Option(help="Fields to order by, each with ' desc' to run backwards.", show_default=False)
]


@app.command()
def whoami(
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    json: AsJson = False,
) -> None:
    """Prints who the server takes the caller for, and its roles by project."""
    from animus.sdk.source import call
    from animus.v1 import access_pb2

    with errors(), _service(address, token_file, insecure) as service:
        me = call(service.WhoAmI, access_pb2.WhoAmIRequest())
        if json:
            print_json(message_tree(me))
            return
        credential = access_pb2.CredentialKind.Name(me.credential).removeprefix("CREDENTIAL_KIND_")
        rows = [
            ("principal", me.principal),
            ("credential", credential.lower().replace("_", " ")),
            *(("member", member) for member in me.members),
            *([("run", me.run_id)] if me.run_id else []),
            *([("expires", _time(me.expire_time))] if me.HasField("expire_time") else []),
            *((f"roles in {grant.project_id}", _roles(grant.roles)) for grant in me.grants),
        ]
        typer.echo("\n".join(table(rows)))


@app.command("break-glass")
def break_glass(
    reason: Reason,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New file for the token, readable by you alone.", show_default=False)
    ],
    hours: Annotated[int, typer.Option(min=1, max=MAX_BREAK_GLASS_HOURS, help="How long the token is good.")] = 1,
) -> None:
    """Makes an instance administrator's token as the owner of the database, on the record of the project `system`.

    Needs the settings of the server and ANIMUS_OWNER_DATABASE_URL; with the embedded database, the server is stopped
    first. See docs/break-glass.md.
    """
    from animus.access_operations import break_glass as make
    from animus.cli_log import run_operation, server_settings

    with errors(), _new_token(SYSTEM_PROJECT, output, False) as token:
        made = run_operation(make(server_settings(), _digest(token), reason, hours))
    typer.echo(f"{made.token_digest} until {_time(made.expire_time)}")


@account_app.command("create")
def create_account(
    account: Account,
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    display_name: Annotated[str, typer.Option(help="A name for people.", show_default=False)] = "",
    description: Annotated[str, typer.Option(help="What it is for.", show_default=False)] = "",
    request_id: RequestId = "",
    json: AsJson = False,
) -> None:
    """Creates a service account, and prints its id."""
    from animus.sdk.source import call
    from animus.v1 import access_pb2

    request = access_pb2.CreateServiceAccountRequest(
        project_id=project,
        request_id=request_id or new_request_id(),
        service_account=access_pb2.ServiceAccount(
            service_account_id=account, display_name=display_name, description=description
        ),
    )
    with errors(), _service(address, token_file, insecure) as service:
        print_message(call(service.CreateServiceAccount, request), json, account)


@account_app.command("list")
def list_accounts(
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    filter_: Filter = "",
    order_by: OrderBy = "",
    json: AsJson = False,
) -> None:
    """Lists the service accounts of the project."""
    from animus.v1 import access_pb2

    request = access_pb2.ListServiceAccountsRequest(project_id=project, filter=filter_, order_by=order_by)
    with errors(), _service(address, token_file, insecure) as service:
        print_list(
            every_item(service.ListServiceAccounts, request, "service_accounts"),
            json,
            ("account", "", "name", "created", "by"),
            lambda each: (
                each.service_account_id,
                "disabled" if each.disabled else "",
                each.display_name,
                _time(each.record.create_time),
                each.record.principal,
            ),
        )


@account_app.command("disable")
def disable_account(
    account: Account,
    reason: Reason,
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    request_id: RequestId = "",
    json: AsJson = False,
) -> None:
    """Ends a service account for good: within a second no server takes any of its tokens."""
    from animus.sdk.source import call
    from animus.v1 import access_pb2

    request = access_pb2.DisableServiceAccountRequest(
        project_id=project, request_id=request_id or new_request_id(), service_account_id=account, reason=reason
    )
    with errors(), _service(address, token_file, insecure) as service:
        print_message(call(service.DisableServiceAccount, request), json, f"disabled {account}")


@token_app.command("create")
def create_token(
    account: Annotated[str, typer.Option(help="Id of the service account.", show_default=False)],
    role: Annotated[str, typer.Option(help="What the token may do, such as viewer or operator.", show_default=False)],
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    days: Annotated[int, typer.Option(min=1, max=MAX_TOKEN_DAYS, help="How long the token is good.")] = 30,
    output: Output = None,
    show: Print = False,
) -> None:
    """Makes a token of a service account, and prints its digest. The server is told the digest alone."""
    from animus.sdk.source import call
    from animus.v1 import access_pb2

    with errors(), _new_token(project, output, show) as token:
        request = access_pb2.CreateTokenRequest(
            project_id=project,
            request_id=new_request_id(),
            token=access_pb2.Token(
                token_digest=_digest(token), principal=account, role=_role(role), expire_time=_after(timedelta(days))
            ),
        )
        with _service(address, token_file, insecure) as service:
            made = call(service.CreateToken, request)
        _tell(made.token_digest, token, show)


@token_app.command("run")
def create_run_token(
    run: Annotated[str, typer.Argument(help="Id of the run.", metavar="RUN", show_default=False)],
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    hours: Annotated[int, typer.Option(min=1, max=24 * MAX_RUN_TOKEN_DAYS, help="How long the token is good.")] = 24,
    output: Output = None,
    show: Print = False,
) -> None:
    """Makes a token of one run, for what runs its steps, and prints its digest."""
    from animus.sdk.source import call
    from animus.v1 import access_pb2

    with errors(), _new_token(project, output, show) as token:
        request = access_pb2.CreateRunTokenRequest(
            project_id=project,
            request_id=new_request_id(),
            run_id=run,
            run_token=access_pb2.RunToken(token_digest=_digest(token), expire_time=_after(timedelta(hours=hours))),
        )
        with _service(address, token_file, insecure) as service:
            made = call(service.CreateRunToken, request)
        _tell(made.token_digest, token, show)


@token_app.command("list")
def list_tokens(
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    filter_: Filter = "",
    order_by: OrderBy = "",
    json: AsJson = False,
) -> None:
    """Lists the tokens of the project, those of runs aside, and when each was last used."""
    from animus.v1 import access_pb2

    request = access_pb2.ListTokensRequest(project_id=project, filter=filter_, order_by=order_by)
    with errors(), _service(address, token_file, insecure) as service:
        print_list(
            every_item(service.ListTokens, request, "tokens"),
            json,
            ("account", "role", "", "expires", "last used", "digest"),
            lambda each: (
                each.principal,
                _roles([each.role]),
                "revoked" if each.revoked else "",
                _time(each.expire_time),
                _time(each.last_use_time) if each.HasField("last_use_time") else "never",
                each.token_digest,
            ),
        )


@token_app.command("revoke")
def revoke_token(
    reason: Reason,
    project: Project,
    digest: Annotated[
        str, typer.Argument(help="Digest of the token, as `list` shows it.", metavar="[DIGEST]", show_default=False)
    ] = "",
    file: Annotated[
        Path | None, typer.Option("--file", help="The token's file, in place of its digest.", show_default=False)
    ] = None,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    request_id: RequestId = "",
    json: AsJson = False,
) -> None:
    """Ends a token: every server refuses it within a second."""
    from animus.sdk.source import call
    from animus.v1 import access_pb2

    if bool(digest) is (file is not None):
        fail(USAGE, "say which token: by its digest, or by --file")
    with errors():
        request = access_pb2.RevokeTokenRequest(
            project_id=project,
            request_id=request_id or new_request_id(),
            token_digest=_digest(read_token(file)) if file else digest,
            reason=reason,
        )
        with _service(address, token_file, insecure) as service:
            print_message(call(service.RevokeToken, request), json, f"revoked {request.token_digest}")


@binding_app.command("set")
def set_binding(
    member: Annotated[
        str, typer.Argument(help="Such as group:corp:ml-admins; docs/access.md.", metavar="MEMBER", show_default=False)
    ],
    project: Project,
    role: Annotated[list[str] | None, typer.Option(help="A role of the member. Repeatable.")] = None,
    no_roles: Annotated[bool, typer.Option("--no-roles", help="Take back all of its roles.")] = False,
    etag: Annotated[
        str, typer.Option(help="Only if the binding is still the one with this etag.", show_default=False)
    ] = "",
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    request_id: RequestId = "",
    json: AsJson = False,
) -> None:
    """Sets the roles of a member in the project, all of them, and prints the etag of the binding."""
    from animus.sdk.source import call
    from animus.v1 import access_pb2

    if bool(role) is no_roles:
        fail(USAGE, "give each --role that the member is to have, or --no-roles to take back all")
    request = access_pb2.SetRoleBindingRequest(
        project_id=project,
        request_id=request_id or new_request_id(),
        role_binding=access_pb2.RoleBinding(member=member, roles=[_role(each) for each in role or ()]),
        etag=etag,
    )
    with errors(), _service(address, token_file, insecure) as service:
        made = call(service.SetRoleBinding, request)
        print_message(made, json, made.etag)


@binding_app.command("list")
def list_bindings(
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    filter_: Filter = "",
    order_by: OrderBy = "",
    json: AsJson = False,
) -> None:
    """Lists the role bindings of the project."""
    from animus.v1 import access_pb2

    request = access_pb2.ListRoleBindingsRequest(project_id=project, filter=filter_, order_by=order_by)
    with errors(), _service(address, token_file, insecure) as service:
        print_list(
            every_item(service.ListRoleBindings, request, "role_bindings"),
            json,
            ("member", "roles", "set", "by", "etag"),
            lambda each: (
                each.member,
                _roles(each.roles),
                _time(each.record.create_time),
                each.record.principal,
                each.etag,
            ),
        )


@contextmanager
def _service(address: str, token_file: Path | None, insecure: bool) -> "Iterator[access_pb2_grpc.AccessServiceStub]":
    """The service, on a channel that keeps the receipts of what is changed."""
    from animus.v1 import access_pb2_grpc

    with channel_to(address, token_file, insecure, kept_receipts()) as channel:
        yield access_pb2_grpc.AccessServiceStub(channel)


@contextmanager
def _new_token(project: str, output: Path | None, show: bool) -> Iterator[str]:
    """A token of the project that nobody has yet; its file is there first, and goes if the token is not registered.

    A registration that came about all the same, its answer lost, is of a token that nobody has.
    """
    import secrets

    from animus.files import create_private

    if (output is not None) is show:
        fail(USAGE, "say where the token goes: --output FILE, or --print")
    token = f"animus_{project}_{secrets.token_urlsafe(32)}"
    if output is not None and not create_private(output, f"{token}\n"):
        fail(CONFLICT, f"{output} is there already")
    try:
        yield token
    except BaseException:
        if output is not None:
            output.unlink()
        raise


def _tell(digest: str, token: str, show: bool) -> None:
    """The digest on stdout; where the token is asked for, that on stdout and the digest beside it."""
    if show:
        typer.echo(token)
    typer.echo(digest, err=show)


def _digest(token: str) -> str:
    from animus.codec import sha256

    return sha256(token.encode())


def _after(life: timedelta) -> "Timestamp":
    from google.protobuf.timestamp_pb2 import Timestamp

    end = Timestamp()
    end.FromDatetime(datetime.now(UTC) + life)
    return end


def _role(text: str) -> Any:
    """The role of a name as `whoami` prints it."""
    from animus.v1 import access_pb2

    known = {name.removeprefix("ROLE_").lower(): value for name, value in access_pb2.Role.items()}
    del known["unspecified"]
    role = known.get(text)
    if role is None:
        fail(USAGE, f"there is no role {text}: {', '.join(known)}")
    return role


def _roles(roles: Any) -> str:
    from animus.v1 import access_pb2

    return ", ".join(access_pb2.Role.Name(role).removeprefix("ROLE_").lower() for role in roles)


def _time(time: "Timestamp") -> str:
    """A time to the second."""
    return time.ToDatetime().strftime("%Y-%m-%dT%H:%M:%SZ")
