"""A service that greets."""

from bottle import Bottle, run

app = Bottle()


@app.get("/hello/<name>")
def hello(name: str) -> dict[str, str]:
    return {"greeting": f"hello, {name}"}


if __name__ == "__main__":
    run(app, host="0.0.0.0", port=8000)
