"""The configuration: which source counts, what is refused, and what is said then."""

import subprocess
import sys
import warnings

import pytest

from sw_agent import _config
from sw_agent._config import ConfigError
from sw_agent._config_opentelemetry import VARIABLES
from sw_agent._config_schema import KEYS
from sw_agent.plugin import Option, Plugin


def check_relations(entries):
    for entry in entries:
        if "=" not in entry:
            raise ValueError(f"{entry!r} has no relation")


POOL = Plugin(
    "my-pool",
    options=[
        Option("spans", False, "a span each"),
        Option("relation", "child", "to its submitter", choices=("child", "link")),
        Option("limit", 3, "how many"),
        Option("share", 0.5, "how much"),
        Option("detached", [], "names"),
        Option("relations", [], "of some", check=check_relations),
    ],
)


class Entry:
    """Stands for an entry point; `loaded` counts its imports."""

    def __init__(self, plugin=None, name=""):
        self.name = plugin.name if plugin else name
        self.plugin = plugin
        self.loaded = 0

    def load(self):
        self.loaded += 1
        if self.plugin is None:
            raise ImportError("broken on purpose")
        return self.plugin


@pytest.fixture
def entries():
    return {entry.name: entry for entry in (Entry(POOL), Entry(Plugin("my")), Entry(name="broken"))}


@pytest.fixture
def load(tmp_path, monkeypatch, entries):
    """Load a configuration in an empty folder: from the text of an agent.toml there, and from variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def load(toml=None, argv=(), said_as=None, **environ):
        if toml is not None:
            data = toml if isinstance(toml, bytes) else toml.encode()
            (tmp_path / "agent.toml").write_bytes(data)
        return _config.load(environ, entries, argv=argv, said_as=said_as)

    return load


def refused(load, *args, **kwargs):
    with pytest.raises(ConfigError) as error:
        load(*args, **kwargs)
    return str(error.value)


def test_without_file_and_variables_every_key_has_its_default(load):
    config = load()

    for key in KEYS:
        assert config.sources[str(key)] == "default"
    assert (config.enabled, config.ratio, config.stale_parent_after, config.to) == (True, 1.0, 60.0, ("local",))
    assert config.file is None
    assert config.plugin_enabled("my-pool")


def test_the_environment_beats_the_file_and_sw_variables_beat_opentelemetrys(load):
    toml = '[agent]\nname = "from file"\n'

    assert load(toml).name == "from file"
    assert load(toml).sources["agent.name"] == "agent.toml"
    resource = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=from resource"}
    assert load(toml, **resource).name == "from resource"
    otel = {**resource, "OTEL_SERVICE_NAME": "from otel"}
    assert load(toml, **otel).name == "from otel"
    config = load(toml, **otel, SW_AGENT_NAME="from sw")
    assert config.name == "from sw"
    assert config.sources["agent.name"] == "SW_AGENT_NAME"


def test_empty_variables_count_as_unset(load):
    config = load(SW_AGENT_NAME="", OTEL_SERVICE_NAME=" ", SW_EXPORT_TO="", SW_AGENT_CONFIG="", OTEL_SDK_DISABLED="")

    assert set(config.sources.values()) == {"default"}


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_every_key_has_a_variable_that_says_the_same_as_the_file(load, key):
    value = {str: "some text", bool: False, int: 65537, float: 0.25, list: ["my"]}[key.kind]
    if key.choices:
        value = ["console"] if key.kind is list else key.choices[-1]
    if str(key) == "export.endpoint":
        value = "http://collector:1"
    text = ",".join(value) if isinstance(value, list) else str(value)

    by_variable = load(**{key.variables[0]: text})
    toml = str(value).replace("'", '"').replace("False", "false") if not isinstance(value, str) else f'"{value}"'
    by_file = load(f"[{key.section}]\n{key.name} = {toml}\n")

    assert getattr(by_variable, key.attribute) == getattr(by_file, key.attribute)
    assert by_file.sources[str(key)] == "agent.toml"


def test_skywalkings_names_mean_what_they_mean_there(load):
    config = load(
        SW_AGENT_NAME="n",
        SW_AGENT_INSTANCE_NAME="i",
        SW_AGENT_NAMESPACE="s",
        SW_AGENT_LOGGING_LEVEL="warn",
        SW_AGENT_DISABLE_PLUGINS="my, my-pool",
        SW_SAMPLE_N_PER_3_SECS="-1",
    )

    assert (config.name, config.instance_name, config.namespace) == ("n", "i", "s")
    assert (config.logging_level, config.per_3_seconds) == ("WARNING", 0)
    assert not config.plugin_enabled("my")
    assert config.why_disabled("my-pool") == "SW_AGENT_DISABLE_PLUGINS"


def test_opentelemetrys_variables_are_read_in_their_own_units(load):
    config = load(
        OTEL_BSP_SCHEDULE_DELAY="500",
        OTEL_BSP_MAX_QUEUE_SIZE="100",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10",
        OTEL_BSP_EXPORT_TIMEOUT="3000",
        OTEL_TRACES_EXPORTER="otlp,console",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
    )

    assert (config.flush_interval, config.queue_size, config.batch_size, config.export_timeout) == (0.5, 100, 10, 3.0)
    assert (config.to, config.protocol) == (("otlp", "console"), "grpc")
    assert load(OTEL_BSP_EXPORT_TIMEOUT="3000", OTEL_EXPORTER_OTLP_TIMEOUT="4").export_timeout == 4.0


@pytest.mark.parametrize(
    ("sampler", "argument", "ratio"),
    [
        ("always_on", "0.1", 1.0),
        ("always_off", "", 0.0),
        ("traceidratio", "0.25", 0.25),
        ("parentbased_always_on", "", 1.0),
        ("parentbased_always_off", "", 0.0),
        ("parentbased_traceidratio", "", 1.0),
    ],
)
def test_the_standard_samplers_are_ratios(load, sampler, argument, ratio):
    assert load(OTEL_TRACES_SAMPLER=sampler, OTEL_TRACES_SAMPLER_ARG=argument).ratio == ratio


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_SAMPLER": "jaeger_remote"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_BSP_MAX_QUEUE_SIZE": "-5"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {"OTEL_RESOURCE_ATTRIBUTES": "no equals sign"},
    ],
)
def test_what_opentelemetrys_variables_say_that_cannot_be_used_is_ignored_with_a_warning(load, environ):
    config = load(**environ)

    assert set(config.sources.values()) == {"default"}
    assert len(config.warnings) == 1
    assert "OTEL_" in config.warnings[0]


def test_resource_attributes_are_decoded_and_the_services_own_become_keys(load):
    config = load(
        OTEL_RESOURCE_ATTRIBUTES="service.instance.id=i,service.namespace=s,deployment.environment=a%20b,team = x "
    )

    assert config.resource_attributes == {"deployment.environment": "a b", "team": "x"}
    assert (config.instance_name, config.namespace) == ("i", "s")


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({"SW_EXPORT_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces"),
        ({"SW_EXPORT_ENDPOINT": "http://c:4318/v1/traces"}, "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/own"}, "http://c:4318/own"),
        ({"SW_EXPORT_ENDPOINT": "c:4317", "SW_EXPORT_PROTOCOL": "grpc"}, "c:4317"),
    ],
)
def test_an_endpoint_is_a_base_except_opentelemetrys_for_traces(load, environ, endpoint):
    config = load(**environ)

    assert config.endpoint == endpoint
    assert config.to == ("otlp",)


@pytest.mark.parametrize(
    ("to", "outputs"),
    [
        ('"auto"', ("local",)),
        ('"none"', ()),
        ('"local, console"', ("local", "console")),
        ('["console", "auto"]', ("local", "console")),
        ('["OTLP", "otlp"]', ("otlp",)),
        ("[]", ()),
    ],
)
def test_spans_go_to_one_output_or_several(load, to, outputs):
    assert load(f"[export]\nto = {to}\n").to == outputs


@pytest.mark.parametrize(
    ("argv", "command", "name"),
    [
        (["python", "dir/app.py", "x"], "app.py", "app"),
        (["/usr/bin/python3.13", "-u", "-X", "dev", "-W", "error", "app.pyz"], "app.pyz", "app"),
        (["python", "-m", "pkg.mod", "-c"], "-m pkg.mod", "pkg.mod"),
        (["python", "-umpkg"], "-m pkg", "pkg"),
        (["python", "-c", "print()"], "-c", "python"),
        (["python", "-Wignore", "pkg/__main__.py"], "pkg", "pkg"),
        (["python", "--check-hash-based-pycs", "never", "app.pyw"], "app.pyw", "app"),
        (["python"], "python", "python"),
        (["/venv/bin/gunicorn", "app:app"], "gunicorn", "gunicorn"),
        (["folder/"], "folder", "folder"),
        (["python", "--help-all"], "python", "python"),
        (["python", "/"], "python", "python"),
        ([], "python", "python"),
    ],
)
def test_the_service_is_named_after_the_command(load, argv, command, name):
    config = load(argv=argv)

    assert (config.command, config.name) == (command, name)


def test_a_child_process_is_of_the_service_that_was_launched_and_has_a_command_of_its_own(load):
    config = load(argv=["python", "worker.py"], SW_AGENT_COMMAND="-m shop.web")

    assert (config.name, config.command) == ("shop.web", "worker.py")


@pytest.mark.parametrize(
    ("environ", "source"),
    [({"SW_AGENT_ENABLED": "No"}, "SW_AGENT_ENABLED"), ({"OTEL_SDK_DISABLED": "TRUE"}, "OTEL_SDK_DISABLED")],
)
def test_a_kill_switch_beats_the_file(load, environ, source):
    config = load("[agent]\nenabled = true\n", **environ)

    assert not config.enabled
    assert config.sources["agent.enabled"] == source


@pytest.mark.parametrize("text", ["true", "1", "YES", "On"])
def test_true_has_four_spellings(load, text):
    assert load(SW_AGENT_PROGRAM_SPAN=text).program_span is True


def test_a_plugin_is_switched_off_by_list_section_and_variable(load):
    assert load('[plugins]\ndisable = ["my"]\n').why_disabled("my") == "agent.toml"
    assert load("[plugins.my]\nenabled = false\n").why_disabled("my") == "agent.toml"
    assert load(None, SW_PLUGIN_MY_ENABLED="off").why_disabled("my") == "SW_PLUGIN_MY_ENABLED"


def test_the_environment_beats_the_file_for_plugins_also_where_one_is_a_list(load):
    listed, own = '[plugins]\ndisable = ["my"]\n', "[plugins.my]\nenabled = true\n"

    assert load(listed, SW_PLUGIN_MY_ENABLED="true").plugin_enabled("my")
    assert load(own, SW_AGENT_DISABLE_PLUGINS="my").why_disabled("my") == "SW_AGENT_DISABLE_PLUGINS"
    assert load(listed, SW_AGENT_DISABLE_PLUGINS="my-pool").plugin_enabled("my")
    assert not load(listed + own).plugin_enabled("my")


def test_options_of_plugins_come_from_file_and_variables(load):
    config = load(
        '[plugins.my-pool]\nspans = true\nrelation = "link"\nshare = 1\ndetached = ["a"]\n',
        SW_PLUGIN_MY_POOL_LIMIT="7",
        SW_PLUGIN_MY_POOL_DETACHED="b, c",
    )

    options = {"spans": True, "relation": "link", "share": 1.0, "limit": 7, "detached": ["b", "c"]}
    assert config.plugins == {"my-pool": options}
    assert config.sources["plugins.my-pool.limit"] == "SW_PLUGIN_MY_POOL_LIMIT"


def test_only_plugins_whose_options_are_set_are_imported(load, entries):
    load("[plugins.my]\nenabled = false\n", SW_PLUGIN_BROKEN_ENABLED="true")
    assert [entry.loaded for entry in entries.values()] == [0, 0, 0]
    load("[plugins.my-pool]\nspans = true\n")
    assert [entry.loaded for entry in entries.values()] == [1, 0, 0]


def test_the_section_of_a_plugin_that_cannot_be_imported_is_not_checked(load):
    config = load("[plugins.broken]\nwhatever = 3\nenabled = false\n", SW_PLUGIN_BROKEN_OTHER="x")

    assert config.plugins == {}
    assert not config.plugin_enabled("broken")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[agnet]\n", "agent.toml:1: there is no section [agnet]; did you mean 'agent'?"),
        ("\n[agent]\nnmae = 'x'\n", "agent.toml:3: [agent] has no key 'nmae'; did you mean 'name'?"),
        ("ratio = 1\n", "agent.toml:1: there is no section [ratio]; it belongs in [sampling]"),
        ("agent = 3\n", "agent.toml:1: agent is a section: write [agent] on a line of its own"),
        ("[agent]\nenabled = 'no'\n", "agent.toml:2: [agent] enabled: 'no' is no boolean: true or false"),
        ("[agent]\nname = 1\n", "agent.toml:2: [agent] name: 1 is no text"),
        ("[sampling]\nratio = 1.5\n", "agent.toml:2: [sampling] ratio: 1.5 is more than 1"),
        ("[sampling]\nratio = nan\n", "agent.toml:2: [sampling] ratio: nan is no number to work with"),
        ("[sampling]\nratio = true\n", "agent.toml:2: [sampling] ratio: True is no number"),
        ("[sampling]\nper_3_seconds = 1.0\n", "agent.toml:2: [sampling] per_3_seconds: 1.0 is no whole number"),
        ("[export]\nqueue_size = -1\n", "agent.toml:2: [export] queue_size: -1 is less than 1"),
        ("[export]\nexit_timeout = 9e99\n", "agent.toml:2: [export] exit_timeout: 9e+99 is more than 86400"),
        (
            "[export]\nexit_timeout = 1" + "0" * 400,
            "agent.toml:2: [export] exit_timeout: inf is no number to work with",
        ),
        ("export.to = 'oltp'\n", "agent.toml:1: [export] to: 'oltp' is none of auto, otlp, local, console, none; did"),
        ("[export]\nto = ['none', 'otlp']\n", "agent.toml:2: [export] to: 'none' stands alone"),
        (
            "[export]\nredact = ['a', '(']\n",
            "agent.toml:2: [export] redact: '(' is no regular expression: missing ), unterminated subpattern at ",
        ),
        ("[export]\nredact = '.'\n", "agent.toml:2: [export] redact: '.' is no list of text"),
        (
            "[export]\nredact = ['[[a]']\n",
            "agent.toml:2: [export] redact: '[[a]' is no regular expression: Possible nes",
        ),
        ("[export]\nredact = ['a{99999999999}']\n", "agent.toml:2: [export] redact: 'a{99999999999}' is no regular ex"),
        ("[export]\nto = [1]\n", "agent.toml:2: [export] to: [1] is no list of text"),
        (
            "[export]\nendpoint = 'host:4318'\n",
            "agent.toml: [export] endpoint: 'host:4318' does not begin with http://",
        ),
        ("[plugins]\ndisable = 'my'\n", "agent.toml:2: [plugins] disable: 'my' is no list of text"),
        ("[plugins]\ndisable = [\n'my',\n'my-pol']\n", "agent.toml:2: [plugins] disable: there is no plugin 'my-pol'"),
        ("[plugins.my_pool]\n", "agent.toml:1: there is no plugin 'my_pool'; did you mean 'my-pool'?"),
        ("[plugins]\nmy-pool = true\n", "agent.toml:2: my-pool is a section: write [plugins.my-pool] on a line of its"),
        ("[plugins.my-pool]\nspnas = 1\n", "agent.toml:2: [plugins.my-pool] has no key 'spnas'; did you mean 'spans'?"),
        ("[plugins.my-pool]\nlimit = '3'\n", "agent.toml:2: [plugins.my-pool] limit: '3' is no whole number"),
        ("[plugins.my-pool]\nrelation = 'lnik'\n", "agent.toml:2: [plugins.my-pool] relation: 'lnik' is none of child"),
        ("[plugins.my]\nspans = true\n", "agent.toml:2: [plugins.my] has no key 'spans'; there are enabled"),
        ("[agent\n", "agent.toml: this is no TOML: "),
        ("[agent]\nname = 'x\n", "agent.toml: this is no TOML: "),
        ("[agent]\n[agent]\n", "agent.toml: this is no TOML: "),
        (b"[agent]\nname = '\xff'\n", "agent.toml: this is no UTF-8: invalid start byte at byte 16"),
        ("a = " + "[" * 100_000, "agent.toml: this is "),
    ],
)
def test_a_mistake_in_the_file_is_said_with_its_place_and_what_was_probably_meant(load, toml, message):
    assert refused(load, toml).startswith(message)


def test_broken_toml_is_said_with_line_and_column(load):
    assert refused(load, "[agent]\nname = = 1\n").endswith("(at line 2, column 8)")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"SW_AGENT_ENABLED": "flase"}, "SW_AGENT_ENABLED: 'flase' is no boolean: true or false"),
        ({"SW_SAMPLING_RATIO": "half"}, "SW_SAMPLING_RATIO: 'half' is no number"),
        ({"SW_SAMPLING_RATIO": "-0.1"}, "SW_SAMPLING_RATIO: -0.1 is less than 0"),
        ({"SW_EXPORT_QUEUE_SIZE": "1e3"}, "SW_EXPORT_QUEUE_SIZE: '1e3' is no whole number"),
        (
            {"SW_EXPORT_TO": "oltp"},
            "SW_EXPORT_TO: 'oltp' is none of auto, otlp, local, console, none; did you mean 'otlp'",
        ),
        ({"SW_AGENT_DISABLE_PLUGINS": "my-pol"}, "SW_AGENT_DISABLE_PLUGINS: there is no plugin 'my-pol'; did you mean"),
        ({"SW_PLUGIN_MY_POOL_LIMIT": "x"}, "SW_PLUGIN_MY_POOL_LIMIT: 'x' is no whole number"),
        ({"SW_EXPORT_REDACT": "a, [b"}, "SW_EXPORT_REDACT: '[b' is no regular expression: unterminated character set"),
        ({"SW_AGENT_CONFIG": "nowhere.toml"}, "nowhere.toml: No such file or directory"),
        ({"SW_AGENT_CONFIG": "."}, ".: Is a directory"),
        ({"SW_AGENT_CONFIG": "a\0b"}, "a\0b: embedded null byte"),
    ],
)
def test_a_mistake_in_a_variable_is_said_with_its_name(load, environ, message):
    assert refused(load, **environ).startswith(message)


def test_a_mistake_in_an_option_of_the_command_line_is_said_with_the_options_name(load):
    message = refused(load, SW_EXPORT_TO="x", said_as={"SW_EXPORT_TO": "--to"})

    assert message.startswith("--to: 'x' is none of")


def test_an_option_with_a_check_of_its_own_is_refused_with_what_that_says(load):
    assert load('[plugins.my-pool]\nrelations = ["a.*=link"]').plugins == {"my-pool": {"relations": ["a.*=link"]}}
    said = refused(load, SW_PLUGIN_MY_POOL_RELATIONS="a.*=link, b")
    assert said == "SW_PLUGIN_MY_POOL_RELATIONS: 'b' has no relation"
    assert refused(load, '[plugins.my-pool]\nrelations = ["a.*"]').endswith("relations: 'a.*' has no relation")


def test_a_pattern_that_python_would_warn_of_is_refused_whatever_is_ignored(load):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "Possible nested set" in refused(load, SW_EXPORT_REDACT="[[b]")


def test_commas_separate_patterns_in_a_variable_but_not_those_of_a_repetition(load):
    assert load().redact == ()
    assert load(SW_EXPORT_REDACT=r"\d{13,16}, a{2,},b,").redact == (r"\d{13,16}", "a{2,}", "b")
    assert load('[export]\nredact = ["a, b", "c"]\n').redact == ("a, b", "c")


@pytest.mark.parametrize(
    "environ",
    [
        {"SW_EXPORT_ENDPOINT": "bob:hunter2@host:4318"},
        {"SW_EXPORT_ENDPOINT": "ftp://bob:hunter2@host"},
        {"SW_EXPORT_TO": "http://bob:hunter2@host:4318"},
        {"SW_EXPORT_REDACT": "http://bob:hunter2@[host"},
    ],
    ids=str,
)
def test_a_mistake_is_said_without_the_credentials_of_a_url(load, environ):
    message = refused(load, **environ)

    assert "hunter2" not in message
    assert "host" in message


def test_what_is_no_resource_attribute_is_not_said_as_it_may_be_the_end_of_a_secret(load):
    config = load(OTEL_RESOURCE_ATTRIBUTES="password=a,hunter2,,b=c")

    assert config.warnings == ("OTEL_RESOURCE_ATTRIBUTES: part 2 is no key=value; it is ignored",)
    assert config.resource_attributes == {"password": "a", "b": "c"}


def test_unknown_variables_are_no_error(load):
    config = load(SW_AGENT_NAM="x", SW_AGENT_COLLECTOR_BACKEND_SERVICES="oap:11800", SW_PLUGIN_MY_SPANS="y")

    assert set(config.sources.values()) == {"default"}


def test_the_named_file_is_read_and_not_the_one_in_the_current_folder(load, tmp_path):
    (tmp_path / "other.toml").write_text('[agent]\nname = "other"\n')

    assert load('[agent]\nname = "here"\n', SW_AGENT_CONFIG="other.toml").name == "other"


def test_a_launched_process_does_not_look_for_a_file_where_it_happens_to_be(load):
    assert load("this is no TOML", SW_AGENT_COMMAND="app.py").file is None


def test_the_store_is_where_the_xdg_specification_says(load, tmp_path):
    assert load().path == str(tmp_path / ".local/state/sw-python/traces.db")
    assert load(XDG_STATE_HOME="/state").path == "/state/sw-python/traces.db"
    assert load(XDG_STATE_HOME="not/absolute").path == load().path


def test_a_user_without_a_home_folder_gets_no_folder_called_by_its_sign(load, monkeypatch):
    def unknown(_user):
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert load().path == "/.local/state/sw-python/traces.db"


def test_a_path_in_the_file_is_relative_to_the_file(load, tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/agent.toml").write_text('[export]\npath = "t.db"\n')

    assert load(SW_AGENT_CONFIG="conf/agent.toml").path == str(tmp_path / "conf/t.db")
    assert load(SW_EXPORT_PATH="t.db").path == str(tmp_path / "t.db")
    assert load(SW_EXPORT_PATH="~/t.db").path == str(tmp_path / "t.db")


def test_a_batch_is_no_larger_than_the_queue(load):
    assert load(SW_EXPORT_QUEUE_SIZE="10").batch_size == 10


def test_the_configuration_is_read_only(load):
    with pytest.raises(AttributeError, match="read-only"):
        load().name = "other"


def test_every_variable_of_opentelemetry_belongs_to_a_key():
    assert set(VARIABLES) <= {str(key) for key in KEYS}


def test_without_a_file_nothing_heavy_is_imported():
    code = (
        "import sys; from sw_agent import _config; before = set(sys.modules)\n"
        "_config.load({'SW_AGENT_NAME': 'x', 'OTEL_SERVICE_NAME': 'y'}, {})\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    out = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
                         capture_output=True, text=True, check=True)  # fmt: skip

    assert out.stdout.split() == ["sw_agent._config_opentelemetry"]


def test_a_key_whose_line_is_not_found_is_refused_without_a_line(load):
    assert refused(load, 'agent = { nam = "a" }\n').startswith("agent.toml: ")


def test_a_variable_of_a_plugin_that_is_not_there_configures_nothing(load):
    assert load(SW_PLUGIN_NOBODYS_SPANS="true").plugins == load().plugins


def test_a_name_in_the_resource_that_is_empty_names_nothing(load):
    assert load(OTEL_RESOURCE_ATTRIBUTES="service.name=", argv=["app.py"]).name == "app"
