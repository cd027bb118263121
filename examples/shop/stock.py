"""The stock service: what an item costs, and whether there is any left."""

import asyncio
import os

from aiohttp import web

PRICES = {"espresso": 2.2, "flat white": 3.4, "croissant": 2.8}


async def look_up(request: web.Request) -> web.Response:
    item = request.match_info["item"]
    if item not in PRICES:
        raise web.HTTPNotFound(text=f"{item} is not on the menu")
    await asyncio.sleep(0.01 * len(item))  # the database
    return web.json_response({"item": item, "price": PRICES[item]})


def application() -> web.Application:
    app = web.Application()
    app.router.add_get("/items/{item}", look_up)
    return app


if __name__ == "__main__":
    web.run_app(application(), host="127.0.0.1", port=int(os.environ["STOCK_PORT"]), print=None)
