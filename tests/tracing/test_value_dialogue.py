"""Runs of graphs that keep no messages: what is kept of input and output, and what the dialogue is."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph, add_messages
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel

from cm2_agent.incidents import Incidents
from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.json_values import CUT_AT
from cm2_agent.types.run import Run
from cm2_agent.types.trace import Trace
from tests.tracing.apps import ScriptedModel, agent, calls, says
from tests.tracing.conftest import Watched
from tests.tracing.test_run_dialogue import lines


class Question(TypedDict, total=False):
    question: str
    query: str
    answer: str


def graph_of(*nodes: Callable[[Any], Any], state: Any = Question, **schemas: Any) -> Any:
    """The nodes one after the other, compiled."""
    graph: Any = StateGraph(state, **schemas)
    before = START
    for node in nodes:
        graph.add_node(node.__name__, node)
        graph.add_edge(before, node.__name__)
        before = node.__name__
    return graph.compile()


def rewrite(state: Question) -> Question:
    return {"query": str(says("france capital").invoke(f"As a query: {state['question']}").content)}


def answer(state: Question) -> Question:
    return {"answer": str(says("Paris").invoke(f"Answer: {state.get('query')}").content)}


def check(run: Run, *expected: str) -> None:
    assert lines(run) == list(expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"input": "question", "output": "answer"}, {"output": lambda state: state["answer"]}],
    ids=["default", "keys", "function"],
)
def test_prompts_inside_a_graph_are_no_user_turns(watched: Watched, options: Any) -> None:
    graph = graph_of(rewrite, answer).with_config(callbacks=[watched.capture(**options)])
    graph.invoke({"question": "capital of France?"})
    check(watched.run, "user: capital of France?", "assistant: Paris")
    assert watched.run.input == {"question": "capital of France?"}
    assert watched.run.output == {"question": "capital of France?", "query": "france capital", "answer": "Paris"}
    assert [call.message for call in watched.run.calls] == [None, 1], "the call whose whole text is the reply wrote it"
    assert len(Trace.of(watched.run).turns) == 1


class Topic(TypedDict, total=False):
    topic: str
    parts: Annotated[list[str], operator.add]
    best: str


def test_a_map_reduce_is_one_turn(watched: Watched) -> None:
    graph: Any = StateGraph(Topic)
    graph.add_node("part", lambda state: {"parts": [str(says(state["of"]).invoke(f"About {state['of']}").content)]})
    graph.add_node("best", lambda state: {"best": str(says("the cat").invoke(str(state["parts"])).content).upper()})
    graph.add_conditional_edges(START, lambda state: [Send("part", {"of": letter}) for letter in "abcd"], ["part"])
    graph.add_edge("part", "best")
    graph.compile().with_config(callbacks=[watched.handler]).invoke({"topic": "pets"})
    check(watched.run, "user: pets", "assistant: THE CAT")
    assert [call.message for call in watched.run.calls] == [None] * 5
    assert watched.run.output == {"topic": "pets", "parts": ["a", "b", "c", "d"], "best": "THE CAT"}


@task
def ask(question: str) -> str:
    return str(says("Paris").invoke(f"Answer: {question}").content)


def test_the_functional_api_with_a_thread(watched: Watched) -> None:
    @entrypoint(checkpointer=InMemorySaver())
    def desk(question: str, *, previous: Any = None) -> Any:
        found = ask(question).result()
        asked = [*(previous or []), question]
        return entrypoint.final(value=f"{found} ({len(asked)})", save=asked)

    app = desk.with_config(callbacks=[watched.handler])
    for question in ("capital of France?", "are you sure?"):
        app.invoke(question, {"configurable": {"thread_id": "t"}})
    assert [lines(run) for run in watched.runs] == [
        ["user: capital of France?", "assistant: Paris (1)"],
        ["user: are you sure?", "assistant: Paris (2)"],
    ]
    assert [(run.input, run.output) for run in watched.runs][1] == ("are you sure?", "Paris (2)")
    assert len(Trace(id="t", runs=tuple(watched.runs)).turns) == 2


@pytest.mark.parametrize("gives", ["message", "text"])
def test_a_functional_agent_with_tools(watched: Watched, gives: str) -> None:
    """The steps that called tools are in the dialogue; a question on the side is not."""

    @tool
    def look(key: int) -> str:
        """Look a key up."""
        return f"value {key}"

    model = ScriptedModel(script=[calls(1), AIMessage(content="It is value 1.")])

    @entrypoint()
    def desk(question: str) -> Any:
        says("a lookup").invoke(f"What kind of question is this: {question}")
        messages: list[Any] = [HumanMessage(f"Be brief. {question}")]
        while True:
            message = model.invoke(messages)
            messages.append(message)
            if not message.tool_calls:
                return message if gives == "message" else message.text
            messages += [look.invoke(call) for call in message.tool_calls]

    desk.with_config(callbacks=[watched.handler]).invoke("what is one?")
    run = watched.run
    check(run, "user: what is one?", "assistant: call1", "tool: call1", "assistant: It is value 1.")
    assert [call.message for call in run.calls] == [None, 1, 3]
    step = Trace.of(run).steps[0]
    assert step.response_to(step.message.tool_calls[0]).response == "value 1"  # type: ignore[union-attr]


def test_a_raw_client_in_a_node(watched: Watched) -> None:
    """Nothing shows the client's call; input and output do."""

    def complete(state: Question) -> Question:
        return {"answer": f"you said: {state['question']}"}

    graph_of(complete).with_config(callbacks=[watched.handler]).invoke({"question": "hi"})
    check(watched.run, "user: hi", "assistant: you said: hi")
    assert watched.run.calls == ()


@dataclass
class Form:
    text: str
    customer: int = 7


class Ticket(BaseModel):
    form: Form
    reply: dict[str, Any] | None = None


def test_paths_into_a_pydantic_state(watched: Watched) -> None:
    def complete(state: Ticket) -> dict[str, Any]:
        return {"reply": {"parts": [{"text": f"noted: {state.form.text}"}], "lang": "en"}}

    handler = watched.capture(input="form.text", output="reply.parts.0.text")
    graph_of(complete, state=Ticket).with_config(callbacks=[handler]).invoke(Ticket(form=Form(text="lost card")))
    check(watched.run, "user: lost card", "assistant: noted: lost card")
    assert watched.run.output["reply"]["lang"] == "en"
    assert watched.incidents.counts == {}


@dataclass
class Simple:
    wish: str
    granted: str = ""


def test_a_dataclass_state_and_schemas_of_input_and_output(watched: Watched) -> None:
    class Given(TypedDict):
        wish: str

    class Got(TypedDict):
        granted: str

    def grant(state: Simple) -> dict[str, str]:
        return {"granted": f"{state.wish}: yes"}

    graph_of(grant, state=Simple).with_config(callbacks=[watched.handler]).invoke(Simple(wish="tea"))
    graph_of(grant, state=Simple, input_schema=Given, output_schema=Got).with_config(
        callbacks=[watched.handler]
    ).invoke({"wish": "cake"})
    assert [lines(run) for run in watched.runs] == [
        ["user: tea", "assistant: tea: yes"],
        ["user: cake", "assistant: cake: yes"],
    ]
    assert [run.output for run in watched.runs] == [{"wish": "tea", "granted": "tea: yes"}, {"granted": "cake: yes"}]


class Chat(TypedDict, total=False):
    chat_history: Annotated[list[AnyMessage], add_messages]
    question: str
    answer: str


def test_messages_under_another_key(watched: Watched) -> None:
    def reply(state: Chat) -> Any:
        return {"chat_history": [says("hello").invoke(state["chat_history"])]}

    app = graph_of(reply, state=Chat).with_config(callbacks=[watched.handler])
    app.invoke({"chat_history": [("user", "hi")]})
    check(watched.run, "user: hi", "assistant: hello")
    assert (watched.run.input, watched.run.output) == (None, None), "the dialogue holds them"


def test_a_question_beside_its_history(watched: Watched) -> None:
    history = [HumanMessage("hi"), AIMessage("hello")]

    def reply(state: Chat) -> Any:
        said = says("Paris").invoke(f"{state['chat_history']} {state['question']}")
        return {"answer": said.text, "chat_history": [HumanMessage(state["question"]), said]}

    app = graph_of(reply, state=Chat).with_config(callbacks=[watched.handler])
    app.invoke({"chat_history": history, "question": "capital of France?"})
    check(watched.run, "user: capital of France?", "assistant: Paris")
    assert [message.text for message in watched.run.history] == ["hi", "hello"]
    assert watched.run.input == {"question": "capital of France?"}


def test_messages_in_and_text_out(watched: Watched) -> None:
    """Inner prompts are no user turns here either."""

    @entrypoint()
    def desk(messages: list[Any]) -> str:
        says("smalltalk").invoke("Which kind of question is it?")
        return says("hello").invoke(messages).text

    desk.with_config(callbacks=[watched.handler]).invoke([HumanMessage("hi")])
    check(watched.run, "user: hi", "assistant: hello")
    assert (watched.run.input, watched.run.output) == (None, "hello")


def test_a_selector_wins_over_messages(watched: Watched) -> None:
    graph = agent(says("hello")).with_config(
        callbacks=[watched.capture(input=lambda given: given["messages"][-1][1].upper())]
    )
    graph.invoke({"messages": [("user", "hi")]})
    check(watched.run, "user: HI", "assistant: hello")
    assert watched.run.output["messages"][-1]["role"] == "assistant", "what the dialogue may lack is kept"


def test_only_what_is_certain(watched: Watched) -> None:
    class Many(TypedDict, total=False):
        left: str
        right: str
        both: list[str]

    def join(state: Many) -> Many:
        says("joined").invoke(f"Join {state}")
        return {"both": [state["left"], state["right"]]}

    graph_of(join, state=Many).with_config(callbacks=[watched.handler]).invoke({"left": "a", "right": "b"})
    check(watched.run)
    assert watched.run.output == {"left": "a", "right": "b", "both": ["a", "b"]}
    assert [call.message for call in watched.run.calls] == [None]


def test_a_chain_that_is_no_graph(watched: Watched) -> None:
    chain = ChatPromptTemplate([("system", "Be brief."), ("user", "Answer: {question}")]) | says("Paris")
    chain.invoke({"question": "capital of France?"}, {"callbacks": [watched.handler]})
    check(watched.run, "user: capital of France?", "assistant: Paris")


@pytest.mark.parametrize("options", [{}, {"input": "question"}])
def test_an_interrupted_run_has_no_reply_yet(watched: Watched, options: Any) -> None:
    def confirm(state: Question) -> Question:
        return {"answer": f"order {interrupt('Which order?')} is on its way"}

    app = graph_of(confirm)
    app.checkpointer = InMemorySaver()
    app = app.with_config(callbacks=[watched.capture(**options)])
    config: Any = {"configurable": {"thread_id": "t"}}
    app.invoke({"question": "where is it?"}, config)
    app.invoke(Command(resume="7"), config)
    first, second = watched.runs
    assert (first.status, lines(first)) == ("interrupted", ["user: where is it?"])
    assert first.output == {"question": "where is it?", "__interrupt__": ["Which order?"]}
    assert (second.input, lines(second)) == ({"resume": "7"}, ["user: 7", "assistant: order 7 is on its way"])
    assert len(Trace(id="t", runs=(first, second)).turns) == 1


def test_what_a_selector_does_not_find_is_counted(watched: Watched) -> None:
    handlers = [watched.capture(input="nothing", output="answer"), watched.capture(output=lambda state: state["no"])]
    for handler in handlers:
        graph_of(answer).with_config(callbacks=[handler]).invoke({"question": "hi"})
    assert [lines(run) for run in watched.runs] == [["assistant: Paris"], ["user: hi"]]
    assert watched.incidents.drain().keys() == {
        "capture: input='nothing' found nothing",
        "capture: output=<lambda> raised KeyError",
    }
    watched.incidents = Incidents()
    with pytest.raises(TypeError, match="input is 7; expected a key"):
        capture(watched.runs.append, input=7)  # type: ignore[arg-type]


def test_a_large_output_is_cut(watched: Watched) -> None:
    def complete(state: Question) -> Question:
        return {"answer": "y" * 2_000_000}

    graph_of(complete).with_config(callbacks=[watched.handler]).invoke({"question": "hi"})
    kept = watched.run.output["answer"]
    assert len(kept) < CUT_AT + 100
    assert kept.endswith("… (2000000 characters)")
    assert len(watched.run.messages[1].text) == 2_000_000, "the reply is whole"


def test_what_was_said_leaves_on_the_span(watched: Watched) -> None:
    graph_of(answer).with_config(callbacks=[watched.capture(input="question", capture_content=True)]).invoke(
        {"question": "hi"}
    )
    root = next(span for span in watched.spans if span.name.startswith("invoke_agent"))
    assert root.attributes is not None
    assert "hi" in str(root.attributes["gen_ai.input.messages"])


class Broken(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("broken")


def test_a_state_that_cannot_be_read_costs_what_is_in_it_alone(watched: Watched) -> None:
    @dataclass
    class Locked:
        question: str
        answer: str = ""

        def __getattribute__(self, name: str) -> Any:
            if name == "answer":
                raise RuntimeError("locked")
            return super().__getattribute__(name)

    app: Any = RunnableLambda(lambda given: "Paris")
    app.invoke(Locked(question="hi"), {"callbacks": [watched.handler]})
    check(watched.run, "user: hi", "assistant: Paris")
    assert watched.run.input == {"question": "hi", "answer": None}
    watched.runs.clear()
    app = RunnableLambda(lambda given: Broken(answer="Paris"))
    app.invoke("hi", {"callbacks": [watched.handler]})
    check(watched.run, "user: hi")
    assert any("RuntimeError" in kind for kind in watched.incidents.drain())
    watched.incidents = Incidents()
