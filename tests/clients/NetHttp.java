import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.security.MessageDigest;
import java.util.HexFormat;

/** Java's java.net.http.HttpClient as it comes: java NetHttp URL. */
public class NetHttp {
    static final HttpClient CLIENT = HttpClient.newBuilder().followRedirects(HttpClient.Redirect.NORMAL).build();

    public static void main(String[] arguments) throws Exception {
        String[] paths = {"/json?x=1&y=%2F", "/gzip", "/missing", "/moved", "/chunked", "/large"};
        for (String path : paths) {
            call("GET", arguments[0], path, null);
        }
        call("HEAD", arguments[0], "/json", null);
        call("POST", arguments[0], "/items", "{\"name\": \"bolt\"}");
    }

    static void call(String method, String base, String path, String body) throws Exception {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(base + path))
                .method(method, body == null ? BodyPublishers.noBody() : BodyPublishers.ofString(body));
        if (System.getenv("AUTH") != null) {
            request.header("Authorization", System.getenv("AUTH"));
        }
        if (body != null) {
            request.header("Content-Type", "application/json");
        }
        HttpResponse<byte[]> response = CLIENT.send(request.build(), BodyHandlers.ofByteArray());
        System.out.println("> " + method + " " + path);
        System.out.println(response.statusCode());
        response.headers().map().forEach((name, values) ->
                values.forEach(value -> System.out.println(name + ": " + value)));
        System.out.println(HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(response.body())));
    }
}
