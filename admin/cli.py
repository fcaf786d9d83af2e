"""The `stillroom` command: wiring of `admin/commands`."""

from admin.commands import captures, keys, lineage, rooms, runs, tasks, teachers, tokens, transfer
from admin.commands.groups import Main, command_group

app = command_group(cls=Main, help="An OpenAI-compatible proxy that learns from its own traffic.")
for module in (rooms, tasks, captures, runs, lineage, transfer, tokens, keys, teachers):
    app.add_typer(module.app)

if __name__ == "__main__":
    app(prog_name="stillroom")
